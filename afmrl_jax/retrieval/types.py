"""What every index has in common: results, interface, checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.json_files import open_regular

CHECKED_ROWS = 65_536
"""Vectors checked at a time, so that a mapped file need not fit in memory."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The k nearest of each query, best first."""

    positions: np.ndarray
    """int32 [q k]; places in `SearchIndex.ids`"""
    scores: np.ndarray
    """float32 [q k]; cosines"""
    names: np.ndarray = field(repr=False)
    """Ids of all places, objects [n], as they were when this was found"""

    @cached_property
    def ids(self) -> list[list[str]]:
        """Ids of the places, a list for each query."""
        # Only when asked for: 8,192 queries for 50 each took a GPU 100 ms, and this as long.
        return self.names[self.positions].tolist()


@runtime_checkable
class SearchIndex(Protocol):
    """Vectors with string ids, searchable by cosine."""

    kind: str
    embedder: str
    """Identity of the embedder whose vectors these are"""

    @property
    def ids(self) -> list[str]:
        """Ids by place. Places change when vectors are deleted or the index is reloaded."""
        ...

    def __len__(self) -> int:
        """Number of vectors that can be found."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k nearest of each query [q d]; fewer where the index holds fewer."""
        ...

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add vectors [n d] under new ids.

        Raises:
            RunError: an id is already known or repeated, or the vectors do not fit.
        """
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Delete vectors.

        Raises:
            RunError: an id is unknown or repeated; then nothing is deleted.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the index as a folder, completely or not at all."""
        ...


def check_vectors(
    ids: Sequence[str], vectors: np.ndarray, dtype: DTypeLike = np.float32, dim: int | None = None
) -> np.ndarray:
    """Vectors [n d] as `dtype`, not copied if they already are; rejects what no index can hold.

    Raises:
        RunError: not one vector per id, a dimension other than `dim`, or non-finite values.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(ids) != len(vectors) or not len(ids):
        raise RunError(f"an index needs one vector per id, got {len(ids)} ids and {vectors.shape}")
    if dim is not None and vectors.shape[1] != dim:
        raise RunError(
            f"the index holds vectors of dimension {dim}, these have {vectors.shape[1]}; embed "
            "with the embedder of the index"
        )
    for begin in range(0, len(vectors), CHECKED_ROWS):
        if not np.isfinite(vectors[begin : begin + CHECKED_ROWS]).all():
            raise RunError("an index cannot hold non-finite vectors; embed them again")
    return vectors.astype(dtype, copy=False)


def open_vectors(path: Path, dtype: DTypeLike, count: int) -> np.ndarray:
    """The vectors [n d] of a `.npy` file, mapped.

    Raises:
        RunError: the file is missing or cut, or does not hold `count` vectors of that type.
    """
    try:
        open_regular(path).close()
        found = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} holds no vectors ({error}); embed the catalogue again") from error
    if found.ndim != 2 or found.dtype != dtype or len(found) != count or not found.shape[1]:
        raise RunError(
            f"{path} holds {found.dtype} {list(found.shape)}, not {count} vectors; embed the "
            "catalogue again"
        )
    return found


def check_new(ids: Sequence[str], known: Container[str] = ()) -> None:
    """Reject ids that are repeated or already known.

    Raises:
        RunError: names the first.
    """
    repeated = [x for x, n in Counter(ids).items() if n > 1]
    if repeated:
        raise RunError(
            f"an index needs unique ids, {repeated[0]!r} is repeated; drop the repeated listings"
        )
    for x in ids:
        if x in known:
            raise RunError(f"the index already holds {x!r}; delete it first to replace it")


def check_known(ids: Sequence[str], known: Container[str]) -> None:
    """Reject ids that are repeated or unknown.

    Raises:
        RunError: names the first.
    """
    for x, n in Counter(ids).items():
        if x not in known or n > 1:
            what = "is repeated" if n > 1 else "is not in the index"
            raise RunError(f"{x!r} {what}; nothing was deleted")
