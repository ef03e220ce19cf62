"""Commands of `afmrl` that check or convert a catalogue, or write attributes for it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.attributes.endpoint import Endpoint
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.records import Catalogue, Problem
from afmrl_jax.data.marketplace.cache import marketplace_folder, read_ideal, write_marketplace
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference import annotate as serving
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.inference.systems import RAR
from afmrl_jax.runs.oracle import oracle_by_checkpoint, oracle_by_endpoint
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.runtime.terminal import printable
from afmrl_jax.training.annotate import require_attributes_file
from afmrl_jax.types import JsonObject, Modality

NAMELESS = tyro.conf.arg(metavar="CATALOGUE")


@dataclass(frozen=True)
class CatalogueCheck:
    """Report what is wrong with a catalogue, record by record; exit status 1 if anything is."""

    folder: Annotated[str | None, tyro.conf.Positional, NAMELESS] = None
    """The catalogue, same as --catalogue."""
    catalogue: str | None = None
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, `hf://user/set#split`,
    `furniture` or `marketplace`."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    as_json: bool = False
    """Print JSON lines: all problems, then the summary."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the reader of a published layout, as in `--options language de`, or settings of
    the marketplace, as in `--options seed 1`."""

    def execute(self) -> None:
        """Run the command."""
        counts: Counter[str] = Counter()

        def show(problem: Problem) -> None:
            counts[problem.severity] += 1
            if self.as_json:
                print(printable(json.dumps({"problem": vars(problem)}, ensure_ascii=False)))
            else:
                print(printable(f"{problem.severity}: {problem}"))

        catalogue = _named(self.catalogue, self.folder)
        summary = check_catalogue(
            catalogue, show, options=parsed(self.options), columns=self.columns
        )
        if self.as_json:
            print(json.dumps({"summary": summary}))
        else:
            print(_summary(summary))
            print(f"{counts['error']} error(s), {counts['warning']} warning(s)")
        if counts["error"]:
            sys.exit(1)


@dataclass(frozen=True)
class CatalogueConvert(Conversion):
    """Turn a catalogue into a store: ArrayRecord shards that Grain and TFDS read, and a manifest.

    It is read once, in bounded memory, and checked while reading. If killed, the same command
    resumes after the last finished shard. Every command that accepts a catalogue accepts the store.
    """

    folder: Annotated[str | None, tyro.conf.Positional, NAMELESS] = None
    """The catalogue, same as --catalogue."""
    catalogue: str | None = None
    """Folder with listings.jsonl, .parquet or .csv, also in object storage, any CSV,
    `hf://user/set#split`, `furniture` or `marketplace`."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    out: Path = tyro.MISSING
    """Folder to write; it must not exist."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the reader of a published layout, as in `--options language de`, or settings of
    the marketplace, as in `--options seed 1`."""

    def execute(self) -> None:
        """Run the command."""
        catalogue = _named(self.catalogue, self.folder)
        source = open_rows(catalogue, parsed(self.options), self.columns)
        manifest = convert(source, self.out, self)
        print(_summary(manifest))
        left = f", {manifest['left_out']} record(s) skipped" if manifest["left_out"] else ""
        print(f"{self.out}: {len(manifest['shards'])} shard(s){left}")


@dataclass(frozen=True)
class CatalogueDraw:
    """Draw the marketplace, and print what a perfect model could reach on it and what chance gives.

    The catalogue `marketplace` is drawn when it is first asked for, and kept in the user's cache;
    this command does the same beforehand, or writes it to a folder.

    Examples:
        afmrl catalogue-draw
        afmrl catalogue-draw --marketplace.seed 1 --out my-marketplace
    """

    marketplace: MarketplaceSettings = field(default_factory=MarketplaceSettings)
    small: bool = False
    """A few hundred listings with the given seed and otherwise settings of their own."""
    out: Path | None = None
    """Folder to write, which must not exist; by default the user's cache."""

    def execute(self) -> None:
        """Run the command."""
        settings = self.marketplace
        if self.small:
            settings = MarketplaceSettings.small(settings.seed)
        if self.out is None:
            folder = marketplace_folder(settings)
        else:
            folder = self.out
            require_own_output(folder, "afmrl catalogue-draw")
            write_marketplace(settings, folder)
        found = read_ideal(folder)
        print(
            f"{found.queries} queries among {found.gallery} listings of the test split, R@1 in %:"
        )
        for task, values in found.tasks.items():
            ideal, chance = values["ideal"]["R@1"], values["chance"]["R@1"]
            print(f"  {task:20s} ideal {ideal:6.2f}   chance {chance:5.2f}")
        print(folder)


def parsed(options: Mapping[str, str]) -> JsonObject:
    """Options from the command line: values as JSON if they are valid JSON, as text otherwise.

    Example:
        >>> parsed({"language": "de", "other_images": "2", "queries": '["dev"]'})
        {'language': 'de', 'other_images': 2, 'queries': ['dev']}
    """

    def value(text: str) -> object:
        try:
            return parse_json(text, "option", error=ConfigError)
        except ConfigError:
            return text

    return {name: value(text) for name, text in options.items()}


def _named(option: str | None, positional: str | None) -> str:
    """The catalogue given to a command, by --catalogue or as a positional argument."""
    if option is None and positional is None:
        raise ConfigError("name the catalogue: --catalogue FOLDER")
    if option is not None and positional is not None:
        raise ConfigError(f"two catalogues are given, {option} and {positional}; name one")
    return option or positional or ""


def _summary(summary: dict) -> str:
    lines = [
        f"{summary['listings']} listings of {summary['products']} products in "
        f"{summary['families']} families"
    ]
    for split, counts in summary["splits"].items():
        lines.append(f"  {split:8s} " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    coverage = summary["coverage"].items()
    lines.append("  known    " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in coverage))
    if "carried" in summary:
        carried = (f"{printable(k)} {100 * v:.0f} %" for k, v in summary["carried"].items())
        lines.append("  carried  " + ", ".join(carried))
    return "\n".join(lines)


@dataclass(frozen=True)
class OnCatalogue:
    """Common options of commands that use a run on a catalogue."""

    run: Path
    """Run directory of a finished `afmrl train`, or `demo-weights`: the models that come with the
    package."""
    catalogue: str
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, `hf://user/set#split`,
    `furniture` or `marketplace`."""
    out: Path
    """File or folder to write."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""

    def read(self, run: FinishedRun, split: str) -> Catalogue:
        """The listings of a split of the catalogue."""
        return serving.read(
            self.catalogue,
            split,
            skip_bad=self.skip_bad,
            marketplace=run.config.marketplace,
            columns=self.columns,
        )


@dataclass(frozen=True)
class Annotate(OnCatalogue):
    """Write the attributes that the generator reads off each listing, one JSON object per line."""

    generator: Literal["distill", "rar"] = "rar"
    """Which generator: the distilled one, or the one that was reinforced last."""
    split: Literal["all", "distill", "train", "reward", "test"] = "all"
    """Listings to annotate."""
    shown: Modality = "both"
    """What of each listing the generator sees: picture and title, or one of them alone. A run
    without lists.lone was trained on both."""

    def execute(self) -> None:
        """Run the command."""
        require_attributes_file(self.out)
        run = models_of(self.run)
        catalogue = self.read(run, self.split)
        generator = run.last_generator if self.generator == RAR else self.generator
        texts = serving.annotate_catalogue(run, generator, catalogue, self.out, shown=self.shown)
        print(f"{len(texts)} listings: {self.out}")


@dataclass(frozen=True)
class Oracle:
    """Have a larger model write attributes to distill the generator from (--oracle.file of a run).

    Either a model with an OpenAI-compatible endpoint (--url and --model), whose replies are all
    kept so that no listing is paid for twice, or a local Qwen-VL folder (--checkpoint).
    """

    catalogue: str
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, `hf://user/set#split`,
    `furniture` or `marketplace`."""
    out: Path
    """JSON lines to write."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    url: str | None = None
    """Base URL of the endpoint, as in http://localhost:8000/v1."""
    model: str | None = None
    """Name of the endpoint's model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; if it is not set, no key is sent."""
    concurrency: int = 8
    """Number of concurrent requests."""
    checkpoint: Path | None = None
    """Folder of a Qwen2-VL or Qwen2.5-VL instead of an endpoint."""
    max_pictures: int = 1
    """Pictures of a listing that the model sees, the first ones."""
    split: Literal["all", "distill", "train", "reward", "test"] = "distill"
    """Listings to annotate; the generator learns only from the distill split."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""

    def execute(self) -> None:
        """Run the command."""
        if (self.checkpoint is None) == (self.url is None or self.model is None):
            raise ConfigError("name an endpoint with --url and --model, or a folder: --checkpoint")
        require_attributes_file(self.out)
        catalogue = serving.read(
            self.catalogue, self.split, skip_bad=self.skip_bad, columns=self.columns
        )
        if self.checkpoint is not None:
            texts = oracle_by_checkpoint(
                catalogue, self.checkpoint, self.out, max_pictures=self.max_pictures
            )
            print(f"{len(texts)} listings: {self.out}")
            return
        assert self.url is not None
        assert self.model is not None
        endpoint = Endpoint(
            self.url,
            self.model,
            self.key_variable,
            self.concurrency,
            max_pictures=self.max_pictures,
        )
        replies = oracle_by_endpoint(catalogue, endpoint, self.out)
        print(f"{len(replies.texts)} listings: {self.out}")
        for listing, why in list(replies.failed.items())[:10]:
            print(printable(f"  {listing}: {why}"))
        if replies.failed:
            print(f"{len(replies.failed)} listings have no attributes and are skipped")
