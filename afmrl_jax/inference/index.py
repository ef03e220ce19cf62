"""An index of your own vectors: build, search, change, save and load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.models.embedder import UNIT_TOLERANCE
from afmrl_jax.retrieval.exact import Dtype, ExactIndex
from afmrl_jax.retrieval.index import load_index
from afmrl_jax.retrieval.index_file import index_files
from afmrl_jax.retrieval.scann import ScannIndex, ScannSettings
from afmrl_jax.retrieval.types import CHECKED_ROWS, SearchIndex, SearchResult
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.runtime.progress import log_info

TUNED_ON = 1000
"""Vectors that serve as queries to tune ScaNN."""


@dataclass(frozen=True)
class IndexSettings:
    """Which index, and how it is built."""

    kind: Literal["exact", "scann"] = "exact"
    dtype: Dtype = "float32"
    """Type of the vectors of an exact index; bfloat16 halves its size."""
    recall: float | None = None
    """Recall@50 that ScaNN is tuned to, on noisy vectors of the catalogue."""

    def __post_init__(self) -> None:
        if self.recall is not None and (self.kind != "scann" or not 0 < self.recall <= 1):
            raise ConfigError(
                f"recall {self.recall} with the {self.kind} index: it is for scann, at most 1"
            )


class Index:
    """Vectors with ids, searched by cosine similarity.

    Example:
        ```python
        index = Index.build(vectors, ids)
        hits = index.search(embedder.encode(["oak chair"]), k=5)
        hits.ids[0], hits.scores[0]
        ```
    """

    def __init__(self, inner: SearchIndex):
        self.inner = inner

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        *,
        settings: IndexSettings | None = None,
        embedder: str = "",
    ) -> Index:
        """An index of vectors.

        Args:
            vectors: unit vectors [n d]; may be memory-mapped.
            ids: one per vector, unique.
            settings: which index; None for the exact one.
            embedder: `Embedder.identity` of the embedder, so that `load` can refuse another one.

        Raises:
            RunError: the ids do not fit, or a vector is not finite or not of length 1.
        """
        vectors = np.asarray(vectors)
        index = _made([str(x) for x in ids], vectors, embedder, settings or IndexSettings())
        _check_lengths(vectors)
        return cls(index)

    @classmethod
    def load(
        cls, folder: Path | str, *, embedder: str | None = None, mesh: Mesh | None = None
    ) -> Index:
        """An index from a folder that `save` or `afmrl embed` wrote.

        Args:
            folder: may have been moved.
            embedder: the `Embedder.identity` that the index must have; None for any.
            mesh: devices that share the vectors of an exact index; None for one device.

        Raises:
            RunError: there is no index, another embedder made it, or its files are not those that
                were written.
        """
        folder = Path(folder)
        embedded = folder / "index"  # Where `afmrl embed` keeps it, next to the listings.
        if not (folder / "index.json").is_file() and embedded.is_dir():
            folder = embedded
        return cls(load_index(folder, embedder=embedder, mesh=mesh))

    @property
    def ids(self) -> list[str]:
        """Ids by position, as in `SearchResult.positions`."""
        return self.inner.ids

    @property
    def embedder(self) -> str:
        """Identity of the embedder; empty if none was given."""
        return self.inner.embedder

    def __len__(self) -> int:
        """Number of vectors that can be found."""
        return len(self.inner)

    def search(self, queries: np.ndarray, k: int = 10) -> SearchResult:
        """The k nearest of each query, best first; fewer if the index holds fewer.

        Args:
            queries: unit vectors [q d].
            k: 1 or more.

        Returns:
            `ids` (a list for each query), `scores` (float32 [q k], cosines) and `positions`
            (int32 [q k], in `Index.ids`).

        Raises:
            ConfigError: k is below 1, or the queries are not a table of vectors.
        """
        queries = np.asarray(queries, np.float32)
        if k < 1:
            raise ConfigError(f"k {k}: ask for one result or more")
        if queries.ndim != 2:
            raise ConfigError(
                f"queries must be [q d], not {list(queries.shape)}; for one, give vectors[:1]"
            )
        if queries.shape[1] != self.inner.dim:
            raise ConfigError(
                f"queries have dimension {queries.shape[1]}, the index {self.inner.dim}; encode "
                "them with the embedder of the index"
            )
        return self.inner.search(queries, k)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add unit vectors [n d] under new ids.

        Raises:
            RunError: an id exists already, or is repeated; or the vectors do not fit.
        """
        _check_lengths(np.asarray(vectors))
        self.inner.add(ids, vectors)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete vectors.

        Raises:
            RunError: an id does not exist, or is repeated; then nothing is deleted.
        """
        self.inner.delete(ids)

    def save(self, folder: Path | str) -> None:
        """Write the index as a folder, whole or not at all.

        Raises:
            RunError: the folder holds something else than an index.
        """
        require_own_output(Path(folder), "Index.save", folder=index_files, error=RunError)
        self.inner.save(Path(folder))


def _check_lengths(vectors: np.ndarray) -> None:
    for begin in range(0, len(vectors), CHECKED_ROWS):
        lengths = np.linalg.norm(vectors[begin : begin + CHECKED_ROWS].astype(np.float32), axis=-1)
        wrong = np.flatnonzero(np.abs(lengths - 1) > UNIT_TOLERANCE)
        if len(wrong):
            raise RunError(
                f"vector {begin + wrong[0]} has length {lengths[wrong[0]]:.3g}, but an index holds "
                "unit vectors; divide each by its length"
            )


def _made(
    ids: list[str], vectors: np.ndarray, embedder: str, settings: IndexSettings, seed: int = 0
) -> SearchIndex:
    """An index of vectors [n d], built by the settings."""
    if settings.kind == "exact":
        return ExactIndex(ids, vectors, embedder, dtype=settings.dtype)
    index = ScannIndex(ids, vectors, embedder, ScannSettings.of(len(ids)))
    if settings.recall is not None and index.settings.hashed:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(len(ids))[:TUNED_ON])
        # A vector itself would be too easy as a query: noise of half its length is added.
        noise = rng.normal(size=(len(chosen), vectors.shape[1])) * 0.5 / vectors.shape[1] ** 0.5
        queries = (vectors[chosen] + noise).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        exact = ExactIndex(ids, vectors).search(queries, 50).positions
        reached = index.tune(queries, exact, settings.recall)
        about = index.settings
        log_info(f"scann: {about.searched} of {about.leaves} leaves, recall {reached:.3f}")
    return index
