"""One interface for exact and approximate search, and loading either from a folder."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.retrieval.types import SearchIndex


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
    from afmrl_jax.retrieval.exact import ExactIndex
    from afmrl_jax.retrieval.scann import ScannIndex

    folder = Path(folder).absolute()
    about = IndexFile.read(folder, embedder=embedder)
    if about.kind == ScannIndex.kind:
        return ScannIndex.load(folder, about)
    return ExactIndex.load(folder, about, mesh)
