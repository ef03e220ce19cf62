"""One interface for exact and approximate search, and loading either from a folder."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.retrieval.types import SearchIndex, open_vectors


def load_index(
    folder: Path | str, *, embedder: str | None = None, mesh: Mesh | None = None
) -> SearchIndex:
    """Load an index from its folder, which may have been moved.

    Args:
        folder: what `save` wrote.
        embedder: identity that the index must have; vectors of two embedders are not comparable.
        mesh: devices for exact search.

    Raises:
        RunError: there is no index, another embedder made it, or its files were changed.
    """
    folder = Path(folder).absolute()
    return open_index(folder, IndexFile.read(folder, embedder=embedder), mesh)


def open_index(folder: Path, about: IndexFile, mesh: Mesh | None = None) -> SearchIndex:
    """The index of an absolute folder whose `index.json` has been read and checked; see
    `load_index`.
    """
    from afmrl_jax.retrieval.exact import ExactIndex
    from afmrl_jax.retrieval.scann import ScannIndex

    if about.kind == ScannIndex.kind:
        return ScannIndex.load(folder, about)
    return ExactIndex.load(folder, about, mesh)


def stored_vectors(folder: Path, about: IndexFile) -> np.ndarray:
    """The vectors [n d] of an index's folder, mapped, as they are stored; see `as_float`.

    Raises:
        RunError: their file does not hold one for each id.
    """
    from afmrl_jax.retrieval.exact import VECTORS
    from afmrl_jax.retrieval.scann import DATASET

    kept = np.dtype(np.uint16 if about.dtype == "bfloat16" else np.float32)
    name = VECTORS if about.kind == "exact" else DATASET
    return open_vectors(folder / name, kept, len(about.ids))


def as_float(stored: np.ndarray) -> np.ndarray:
    """Some of `stored_vectors` as float32."""
    if stored.dtype == np.uint16:  # NumPy's file format does not know bfloat16.
        stored = stored.view(ml_dtypes.bfloat16)
    return np.asarray(stored.astype(np.float32))
