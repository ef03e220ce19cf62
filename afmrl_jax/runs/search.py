"""Searches an embedded catalogue: by words, a picture, or both; one query or a file of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import AfmrlError, CatalogueError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs.embedded import About
from afmrl_jax.runs.living.filters import Where
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runtime.json_files import checked, lines_of, parse_json, read_bytes
from afmrl_jax.runtime.terminal import printable
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
            AfmrlError: there is nothing to search for, the name has control characters, the text is
                not Unicode, or there is no such picture.
        """
        if printable(name) != name:
            raise AfmrlError(f"the id {printable(name)[:80]!r} has control characters")
        text = (text or "").strip() or None
        if text is not None and not _is_unicode(text):
            raise AfmrlError("the text has half of a surrogate pair; write it in UTF-8")
        if text is None and image is None:
            raise AfmrlError("a search needs --text, --image, or both")
        path = None if image is None else Path(image)
        if path is not None:
            if not _is_file(path):
                raise AfmrlError(f"there is no picture {str(path)[:200]!r}")
            try:
                decode(read_bytes(path, error=CatalogueError))
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
    """What the generator wrote for a query of picture and words; empty for a query of only one,
    unless the run has `lists.lone`."""


def read_queries(path: Path) -> Iterator[Query]:
    """The queries of a file: one JSON object per line, with `text`, `image` or both.

    A query is named by its `id`, or else by its line number. Picture paths are relative to the
    file.

    Raises:
        AfmrlError: names the line.
    """
    if not _is_file(path):
        raise AfmrlError(f"there is no file {path}; write one JSON object per line")
    for number, line in lines_of(path, error=AfmrlError):
        where = f"{path}, line {number}"
        row = checked(
            _Row, parse_json(line, where, error=AfmrlError), where, error=AfmrlError, remedy=REMEDY
        )
        image = path.parent / row.image if row.image else None
        try:
            yield Query.of(str(row.id or number), row.text, image)
        except AfmrlError as error:
            raise AfmrlError(f"{where}: {error}") from error


@dataclass(frozen=True)
class _Row:
    """A line of a file of queries."""

    id: str | int | None = None
    text: str | None = None
    image: str | None = None


REMEDY = "a query is an object with `text`, `image` or both, and `id`"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that is too long.
        return False


class Searcher:
    """The embedder of a run, and an index of a catalogue that it embedded.

    Args:
        run: the run whose embedder embedded the catalogue.
        folder: a folder that `embed_catalogue` wrote.

    Raises:
        RunError: the folder holds no embedded catalogue, another embedder made it, or its files are
            not those that were written.
    """

    def __init__(self, run: FinishedRun, folder: Path):
        about = About.read(folder)
        self._embedder = Embedder.of(run, run.system(about.system))
        self._index = LivingIndex(folder, embedder=self._embedder.identity, mesh=run.mesh)

    def search(self, queries: Sequence[Query], k: int, where: Where = ()) -> list[Found]:
        """The k best listings of each query, among those that fit some conditions."""
        if k < 1:
            raise AfmrlError(f"-k {k}: must be 1 or more")
        items = [{"text": x.text, "image": x.image} for x in queries]
        vectors, texts = self._embedder.encode_with_attributes(items)
        hits = self._index.search(vectors, k, where)
        return [
            Found(
                x.name,
                [{"score": round(score, 4), **self._index.shown(name)} for name, score in found],
                text,
            )
            for x, text, found in zip(queries, texts, hits, strict=True)
        ]

    def search_file(self, path: Path, k: int, where: Where = ()) -> Iterator[Found]:
        """The results of every query of a file, `BATCH` queries at a time."""
        queries = read_queries(path)
        while some := list(islice(queries, BATCH)):
            yield from self.search(some, k, where)
