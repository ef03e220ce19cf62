"""One interface for exact and approximate search, and loading either from a folder."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval.types import SearchIndex
from afmrl_jax.runtime.json_files import read_json


def load_index(
    folder: Path | str, *, embedder: str | None = None, mesh: Mesh | None = None
) -> SearchIndex:
    """Load an index from its folder, which may have been moved.

    Args:
        folder: what `save` wrote.
        embedder: identity that the index must have; vectors of two embedders are not comparable.
        mesh: devices for exact search.
    """
    from afmrl_jax.retrieval.exact import ExactIndex
    from afmrl_jax.retrieval.scann import ScannIndex

    folder = Path(folder).absolute()
    if not (folder / "index.json").is_file():
        raise RunError(
            f"{folder} contains no index (index.json is missing); run `afmrl embed` first"
        )
    about = read_json(folder / "index.json")
    if embedder is not None and about["embedder"] != embedder:
        raise RunError(
            f"{folder} was built by embedder {about['embedder']}, not by {embedder}; "
            "embed the catalogue again with this run"
        )
    if about["kind"] == ScannIndex.kind:
        return ScannIndex.load(folder, about)
    return ExactIndex.load(folder, about, mesh)
