"""Searches an embedded catalogue: by words, a picture, or both; one query or a file of queries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import AfmrlError, CatalogueError, RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index
from afmrl_jax.runs.embed import ABOUT, LISTINGS
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import JsonObject

BATCH = 256
"""How many queries of a file are searched at a time."""


@dataclass(frozen=True)
class Query:
    """Words, a picture, or both."""

    name: str
    text: str | None = None
    image: Path | None = None

    @classmethod
    def of(cls, name: str, text: str | None, image: Path | str | None) -> Query:
        """A valid query.

        Raises:
            AfmrlError: there is nothing to search for, or no such picture.
        """
        text = (text or "").strip() or None
        if text is None and image is None:
            raise AfmrlError("a search needs --text, --image, or both")
        path = None if image is None else Path(image)
        if path is not None:
            if not path.is_file():
                raise AfmrlError(f"there is no picture {path}")
            try:
                decode(path.read_bytes())
            except CatalogueError as error:
                raise AfmrlError(f"{path}: {error}") from error
        return cls(name, text, path)


@dataclass(frozen=True)
class Found:
    """The results of a query."""

    query: str
    results: list[JsonObject]
    """Best first, each with its score."""
    attributes: str
    """What the generator wrote for a query of picture and words; empty for a query of only one."""


def read_queries(path: Path) -> Iterator[Query]:
    """The queries of a file: one JSON object per line, with `text`, `image` or both.

    A query is named by its `id`, or else by its line number. Picture paths are relative to the
    file.

    Raises:
        AfmrlError: names the line.
    """
    if not path.is_file():
        raise AfmrlError(f"there is no file {path}; write one JSON object per line")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                image = row.get("image")
                name = str(row.get("id") or number)
                yield Query.of(name, row.get("text"), path.parent / image if image else None)
            except (ValueError, AttributeError, TypeError) as error:
                raise AfmrlError(
                    f"{path}, line {number}: not a query ({error}); write an object with `text`, "
                    "`image` or both"
                ) from error
            except AfmrlError as error:
                raise AfmrlError(f"{path}, line {number}: {error}") from error


class Searcher:
    """The embedder of a run, and an index of a catalogue that it embedded.

    Args:
        run: the run whose embedder embedded the catalogue.
        folder: a folder that `embed_catalogue` wrote.

    Raises:
        RunError: the folder holds no embedded catalogue, or another embedder made it.
    """

    def __init__(self, run: FinishedRun, folder: Path):
        if not (folder / ABOUT).is_file():
            raise RunError(f"{folder} holds no embedded catalogue; write one with `afmrl embed`")
        self._folder = folder
        self._embedder = Embedder.of(run, run.system(read_json(folder / ABOUT)["system"]))
        identity = self._embedder.identity
        self._index = Index.load(folder / "index", embedder=identity, mesh=run.mesh)

    def search(self, queries: Sequence[Query], k: int) -> list[Found]:
        """The k best listings of each query."""
        if k < 1:
            raise AfmrlError(f"-k {k}: must be 1 or more")
        items = [{"text": x.text, "image": x.image} for x in queries]
        vectors, texts = self._embedder.encode_with_attributes(items)
        result = self._index.search(vectors, k)
        lines = self._lines({int(p) for row in result.positions for p in row})
        return [
            Found(
                x.name,
                [
                    {"score": round(float(score), 4), **json.loads(lines[int(place)])}
                    for place, score in zip(places, scores, strict=True)
                ],
                text,
            )
            for x, text, places, scores in zip(
                queries, texts, result.positions, result.scores, strict=True
            )
        ]

    def search_file(self, path: Path, k: int) -> Iterator[Found]:
        """The results of every query of a file, `BATCH` queries at a time."""
        queries = read_queries(path)
        while some := list(islice(queries, BATCH)):
            yield from self.search(some, k)

    def _lines(self, places: set[int]) -> dict[int, str]:
        """Lines of the listings' file, counted from 0."""
        last = max(places, default=-1)
        with (self._folder / LISTINGS).open(encoding="utf-8", newline="\n") as file:
            return {n: line for n, line in enumerate(islice(file, last + 1)) if n in places}
