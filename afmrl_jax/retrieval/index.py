"""One interface for exact and approximate search, and loading either from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.files import read_json


class SearchResult(NamedTuple):
    """The first k of each query, best first."""

    positions: np.ndarray
    """int32 [q k]; places in the index"""
    scores: np.ndarray
    """float32 [q k]; cosines"""
    ids: list[list[str]]
    """Ids of the places"""


class Index(Protocol):
    """Vectors with string ids, searchable by cosine."""

    kind: str
    ids: list[str]
    embedder: str
    """Identity of the embedder whose vectors these are"""

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k nearest of each query; fewer where the index holds fewer."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index as a folder, whole or not at all."""
        ...


def check_vectors(ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Vectors as float32 [m d]; refuses what no index can hold."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or len(ids) != len(vectors) or not len(ids):
        raise RunError(f"an index needs one vector an id, got {len(ids)} ids and {vectors.shape}")
    if len(set(ids)) != len(ids):
        raise RunError("an index needs unique ids; drop the repeated listings")
    if not np.isfinite(vectors).all():
        raise RunError("an index cannot hold vectors that are not finite; embed them again")
    return vectors


def load_index(folder: Path | str, *, embedder: str | None = None) -> Index:
    """An index from its folder, which may have been moved.

    Args:
        folder: what `save` wrote.
        embedder: identity that the index must have; vectors of two embedders do not compare.
    """
    from afmrl_jax.retrieval.exact import ExactIndex
    from afmrl_jax.retrieval.scann_index import ScannIndex

    folder = Path(folder).absolute()
    if not (folder / "index.json").is_file():
        raise RunError(f"{folder} holds no index (index.json is missing); run `afmrl embed` first")
    about = read_json(folder / "index.json")
    if embedder is not None and about["embedder"] != embedder:
        raise RunError(
            f"{folder} was built by embedder {about['embedder']}, not by {embedder}; "
            "embed the catalogue again with this run"
        )
    kinds: dict[str, Any] = {"exact": ExactIndex, "scann": ScannIndex}
    return kinds[about["kind"]].load(folder, about)
