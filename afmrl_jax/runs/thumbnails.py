"""The listings of an embedded catalogue and their small pictures, written side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.thumbnails import thumbnail
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runs.earlier import Earlier
from afmrl_jax.runs.embedded import (
    LISTINGS,
    READ_AT_ONCE,
    READERS,
    THUMBNAILS,
    encoded_line,
    line_of,
)
from afmrl_jax.types import JsonObject


class LinesFile:
    """Writes the lines of a folder's listings, and the thumbnails that go with them.

    Args:
        folder: of the embedded catalogue.
        thumbnails: whether it has any.
    """

    def __init__(self, folder: Path, *, thumbnails: bool):
        self._files = ExitStack()
        self._lines = self._files.enter_context((folder / LISTINGS).open("wb"))
        self._small: IO[bytes] | None = None
        if thumbnails:
            self._small = self._files.enter_context((folder / THUMBNAILS).open("wb"))

    def write(self, line: JsonObject, small: bytes | None) -> None:
        """Append a listing."""
        line = {name: x for name, x in line.items() if name != "thumbnail"}
        if self._small is not None and small is not None:
            line["thumbnail"] = [self._small.tell(), len(small)]
            self._small.write(small)
        self._lines.write(encoded_line(line))

    def __enter__(self) -> LinesFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def write_lines(
    folder: Path,
    listings: Sequence[Listing],
    contents: Sequence[str],
    texts: Sequence[str | None],
    side: int | None,
    earlier: Earlier | None,
) -> None:
    """Write the listings of a catalogue, with thumbnails of `side` pixels if that is not None.

    Those of an earlier folder are taken over where the picture is the same.
    """
    small: Iterator[bytes | None] = iter(() if side is not None else [None] * len(listings))
    if side is not None:
        small = _thumbnails(listings, contents, side, earlier)
    with LinesFile(folder, thumbnails=side is not None) as file:
        for x, content, text, picture in zip(listings, contents, texts, small, strict=True):
            file.write(line_of(x, content, text), picture)


def _thumbnails(
    listings: Sequence[Listing], contents: Sequence[str], side: int, earlier: Earlier | None
) -> Iterator[bytes | None]:
    def made(number: int) -> bytes | None:
        x = listings[number]
        known = None
        if earlier is not None:
            known = earlier.thumbnail(x.listing_id, contents[number], side)
        if known is not None:
            return known
        try:
            with x.encoded() as picture:
                return thumbnail(picture, side)
        except CatalogueError:  # A run that leaves bad pictures out has embedded it without.
            return None

    with ThreadPoolExecutor(READERS) as readers:
        for begin in range(0, len(listings), READ_AT_ONCE):
            yield from readers.map(made, range(begin, min(begin + READ_AT_ONCE, len(listings))))
