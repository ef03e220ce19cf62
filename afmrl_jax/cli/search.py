"""Commands of `afmrl` that embed a catalogue and search it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from afmrl_jax.cli.catalogue import OnCatalogue
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.runs.embed import IndexSettings, embed_catalogue
from afmrl_jax.runs.living.filters import parse_where
from afmrl_jax.runs.search import Query, Searcher
from afmrl_jax.runtime.terminal import printable


@dataclass(frozen=True)
class Embed(OnCatalogue):
    """Embed a catalogue and build a searchable index of it.

    The same command resumes after the last embedded listings if it was killed.
    """

    system: str | None = None
    """Row of the results table, such as `infonce` or `agcl+distilled`; by default the last one."""
    attributes: Path | None = None
    """Attributes from `afmrl annotate`; by default the system's generator writes them now."""
    index: IndexSettings = field(default_factory=IndexSettings)
    """How the index is searched."""
    split: Literal["all", "distill", "train", "reward", "test"] = "all"
    """Listings to embed."""
    thumbnails: int | None = None
    """Keep small JPEGs, their longer side so many pixels, such as 256, so that results can be shown
    without the catalogue; by default none, or with --update what --out has."""
    update: bool = False
    """Embed only listings that are new or changed since --out was written, and drop those that are
    gone. The result is that of embedding everything."""

    def execute(self) -> None:
        """Run the command."""
        run = models_of(self.run)
        catalogue = self.read(run, self.split)
        embed_catalogue(
            run,
            self.system,
            catalogue,
            self.out,
            attributes=self.attributes,
            settings=self.index,
            thumbnails=self.thumbnails,
            update=self.update,
        )
        print(f"{len(catalogue.listings)} listings: {self.out}")


@dataclass(frozen=True)
class Search:
    """Find listings by a text, a picture, or both; or by a file of such queries."""

    run: Path
    """Run directory of the embedder, or `demo-weights`."""
    index: Path
    """What `afmrl embed` wrote."""
    text: str | None = None
    """Words, as in a title."""
    image: Path | None = None
    """A picture file."""
    queries: Path | None = None
    """JSON lines with `text`, `image` or both, and `id`; prints a JSON object for each."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many listings."""
    where: tuple[str, ...] = ()
    """Only listings that fit all of these: `price<50`, `brand=Acme`, `title~oak`,
    `attributes.color=red`; with <, <=, >, >=, =, != and ~ (contains). Quote them in a shell."""
    as_json: bool = False
    """Print one JSON object per result."""

    def execute(self) -> None:
        """Run the command."""
        where = parse_where(self.where)
        if self.queries is not None:
            if self.text is not None or self.image is not None:
                raise ConfigError("give --queries, or --text and --image, not both")
            for answer in Searcher(models_of(self.run), self.index).search_file(
                self.queries, self.k, where
            ):
                print(printable(json.dumps(vars(answer), ensure_ascii=False)))
            return
        query = Query.of("query", self.text, self.image)
        (found,) = Searcher(models_of(self.run), self.index).search([query], self.k, where)
        if self.as_json:
            for x in found.results:
                print(printable(json.dumps(x, ensure_ascii=False)))
            return
        if found.attributes:
            print(printable(f"read off the query: {found.attributes}"))
        for number, x in enumerate(found.results, 1):
            line = f"{x['score']:.4f}  {x['listing_id']}  [{x['product_id']}]  {x['title']}"
            extra = "".join(f"  {name}: {value}" for name, value in x.get("extra", {}).items())
            print(printable(f"{number:3d}  {line}{extra}"))
