"""What stands in the log of an embedded catalogue: listings that came, and ids that went.

A record is the length of its head, the head (JSON), the vectors (float32, little-endian) and the
thumbnails, in the order of the listings. The first record names the folder that the log belongs to.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.models.embedder import UNIT_TOLERANCE
from afmrl_jax.runs.embedded import checked_line
from afmrl_jax.runtime.json_files import checked, json_text, parse_json
from afmrl_jax.types import JsonObject

FORMAT = 1
REMEDY = "restore the folder from a copy, or embed the catalogue again with `afmrl embed`"
_LENGTH = struct.Struct("<I")
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class Entry:
    """A listing as the index holds it."""

    line: JsonObject
    """Of the listings' file; see `line_of`."""
    vector: np.ndarray
    """float32 [d], of length 1."""
    thumbnail: bytes | None = None
    """A JPEG."""

    @property
    def listing_id(self) -> str:
        """Its id."""
        found: str = self.line["listing_id"]
        return found


@dataclass(frozen=True, eq=False)
class Change:
    """A record: all of it comes true, or nothing."""

    put: Sequence[Entry] = ()
    """Listings that are new, or replace those of the same id."""
    removed: Sequence[str] = ()
    """Ids."""


@dataclass(frozen=True)
class _Head:
    """The head of a record."""

    put: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes of each thumbnail; 0 for none."""
    dim: int = 0
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _First:
    """The first record."""

    format: int
    index: str


def first_record(index: str) -> bytes:
    """The record that a log begins with.

    Args:
        index: `About.identity` of the folder.
    """
    return json_text({"format": FORMAT, "index": index}).encode()


def check_first(record: bytes, index: str, where: object) -> None:
    """Check that a log belongs to a folder.

    Raises:
        RunError: it belongs to another one, or a newer version wrote it.
    """
    found = checked(_First, parse_json(record, where, remedy=REMEDY), where, remedy=REMEDY)
    if found.format > FORMAT:
        raise RunError(f"{where} has format {found.format} of a newer version; update afmrl-jax")
    if found.index != index:
        raise RunError(f"{where} belongs to another index than the one beside it; {REMEDY}")


def encoded(change: Change) -> bytes:
    """A change as a record.

    Raises:
        RunError: a text cannot be written in UTF-8.
    """
    head = {
        "put": [x.line for x in change.put],
        "sizes": [len(x.thumbnail or b"") for x in change.put],
        "dim": len(change.put[0].vector) if change.put else 0,
        "removed": list(change.removed),
    }
    try:
        text = json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # Half of a surrogate pair, or a number that is not finite.
        raise RunError(f"a listing cannot be written ({error}); correct its texts") from error
    vectors = [np.asarray(x.vector, _FLOAT).tobytes() for x in change.put]
    small = [x.thumbnail or b"" for x in change.put]
    return b"".join([_LENGTH.pack(len(text)), text, *vectors, *small])


def decoded(record: bytes, where: object, dim: int) -> Change:
    """The change of a record.

    Args:
        record: its bytes.
        where: what errors call it.
        dim: length of the index's vectors.

    Raises:
        RunError: the record is none, or does not fit the index.
    """
    length = _LENGTH.unpack_from(record)[0] if len(record) >= _LENGTH.size else len(record)
    begin = _LENGTH.size + length
    if begin > len(record):
        raise RunError(f"{where} ends within its head; {REMEDY}")
    head = checked(
        _Head, parse_json(record[_LENGTH.size : begin], where, remedy=REMEDY), where, remedy=REMEDY
    )
    count = len(head.put)
    end = begin + count * dim * _FLOAT.itemsize
    fits = len(head.sizes) == count and min(head.sizes, default=0) >= 0
    if not fits or (count and head.dim != dim) or end + sum(head.sizes) != len(record):
        raise RunError(f"{where} does not hold a vector of {dim} for each listing; {REMEDY}")
    vectors = np.frombuffer(record[begin:end], _FLOAT).reshape(count, dim).astype(np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():  # Nor where it is NaN.
        raise RunError(f"{where} holds a vector that is not of length 1; {REMEDY}")
    put = []
    for line, vector, size in zip(head.put, vectors, head.sizes, strict=True):
        put.append(Entry(checked_line(line, where), vector, record[end : end + size] or None))
        end += size
    return Change(put, head.removed)
