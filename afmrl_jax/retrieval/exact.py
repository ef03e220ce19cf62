"""Exact search: blocked matrix products and a running top-k, jitted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.files import atomic_path, write_json
from afmrl_jax.retrieval.index import SearchResult, check_vectors

BLOCK = 16_384
QUERIES = 256


@partial(jax.jit, static_argnums=3)
def _merge_block(
    queries: jax.Array, block: jax.Array, best: tuple[jax.Array, jax.Array], k: int, offset: Any
) -> tuple[jax.Array, jax.Array]:
    """The k best of what was best so far and a block; earlier places win ties."""
    scores = jnp.dot(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    places = offset + jnp.arange(block.shape[0], dtype=jnp.int32)
    all_scores = jnp.concatenate([best[0], scores], axis=1)
    all_places = jnp.concatenate([best[1], jnp.broadcast_to(places[None], scores.shape)], axis=1)
    top, chosen = jax.lax.top_k(all_scores, k)
    return top, jnp.take_along_axis(all_places, chosen, axis=1)


class ExactIndex:
    """Every vector is compared with every query."""

    kind = "exact"

    def __init__(self, ids: Sequence[str], vectors: np.ndarray, embedder: str = ""):
        self.ids = list(ids)
        self.vectors = check_vectors(self.ids, vectors)
        self.embedder = embedder

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """See `Index.search`; equal scores come in the order of the index."""
        k = min(k, len(self.ids))
        queries = np.asarray(queries, np.float32)
        scores = np.zeros((len(queries), k), np.float32)
        positions = np.zeros((len(queries), k), np.int32)
        for begin in range(0, len(queries), QUERIES):
            part = queries[begin : begin + QUERIES]
            padded = np.zeros((QUERIES, queries.shape[1]), np.float32)
            padded[: len(part)] = part
            best = (
                jnp.full((QUERIES, k), -jnp.inf, jnp.float32),
                jnp.zeros((QUERIES, k), jnp.int32),
            )
            for offset in range(0, len(self.vectors), BLOCK):
                block = self.vectors[offset : offset + BLOCK]
                best = _merge_block(padded, block, best, k, jnp.int32(offset))
            scores[begin : begin + len(part)] = np.asarray(best[0])[: len(part)]
            positions[begin : begin + len(part)] = np.asarray(best[1])[: len(part)]
        return SearchResult(positions, scores, [[self.ids[p] for p in row] for row in positions])

    def save(self, folder: Path) -> None:
        """See `Index.save`."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            np.save(temporary / "vectors.npy", self.vectors)
            about = {"kind": self.kind, "embedder": self.embedder, "ids": self.ids}
            write_json(temporary / "index.json", about)

    @classmethod
    def load(cls, folder: Path, about: dict[str, Any]) -> ExactIndex:
        """Read what `save` wrote."""
        return cls(about["ids"], np.load(folder / "vectors.npy"), about["embedder"])
