"""Approximate search by ScaNN (Linux only; imported when first used)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.files import atomic_path, write_json
from afmrl_jax.retrieval.index import SearchResult, check_vectors

TREE_FROM = 2_000
"""Vectors from which a tree pays; below it ScaNN compares quantised vectors one by one."""


def _scann() -> Any:
    try:
        import scann
    except ImportError as error:
        raise RunError(
            "ScaNN is not installed (it has wheels for Linux only); use the exact index"
        ) from error
    return scann


class ScannIndex:
    """Asymmetric hashing with exact re-ordering, behind a tree where there is enough to divide."""

    kind = "scann"

    def __init__(self, ids: Sequence[str], vectors: np.ndarray, embedder: str = ""):
        self.ids = list(ids)
        vectors = check_vectors(self.ids, vectors)
        self.embedder = embedder
        self._dim = vectors.shape[1]
        self._searcher = _build(vectors)

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """See `Index.search`."""
        k = min(k, len(self.ids))
        places, scores = self._searcher.search_batched(
            np.asarray(queries, np.float32), final_num_neighbors=k
        )
        places = np.asarray(places, np.int32)
        ids = [[self.ids[p] for p in row] for row in places]
        return SearchResult(places, np.asarray(scores, np.float32), ids)

    def save(self, folder: Path) -> None:
        """See `Index.save`."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            # ScaNN writes the paths of its parts down; relative ones survive a move.
            self._searcher.serialize(str(temporary.absolute()), relative_path=True)
            about = {"kind": self.kind, "embedder": self.embedder, "ids": self.ids}
            write_json(temporary / "index.json", about | {"dim": self._dim})

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ScannIndex:
        """Read what `save` wrote."""
        index = cls.__new__(cls)
        index.ids, index.embedder, index._dim = about["ids"], about["embedder"], about["dim"]
        index._searcher = _scann().scann_ops_pybind.load_searcher(str(folder.absolute()))
        return index


def _build(vectors: np.ndarray) -> Any:
    """A searcher with settings by size, after ScaNN's own guidelines."""
    builder = _scann().scann_ops_pybind.builder(vectors, min(10, len(vectors)), "dot_product")
    if len(vectors) < TREE_FROM:
        return builder.score_brute_force().build()
    leaves = int(np.sqrt(len(vectors)))
    builder = builder.tree(
        num_leaves=leaves,
        num_leaves_to_search=max(leaves // 5, 1),
        training_sample_size=min(len(vectors), 250_000),
    )
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()
