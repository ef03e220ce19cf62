"""Small indexes whose listings follow from their ids and versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from afmrl_jax.inference.index import Index
from afmrl_jax.runs.embedded import INDEX, About
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.thumbnails import LinesFile


def made_entry(
    listing_id: str,
    version: int,
    dim: int,
    thumbnail: Callable[[np.random.Generator], bytes],
    **columns: object,
) -> Entry:
    """A listing that follows from its id and version.

    Args:
        listing_id: also says its product.
        version: said by title and content hash.
        dim: length of its vector.
        thumbnail: draws its picture.
        columns: of the line, besides.
    """
    rng = np.random.default_rng([version, *listing_id.encode()])
    vector = rng.normal(size=dim).astype(np.float32)
    line = {
        "listing_id": listing_id,
        "product_id": f"product of {listing_id}",
        "title": f"title {version}",
        **columns,
        "content": f"{version:032d}",
    }
    return Entry(line, vector / np.linalg.norm(vector), thumbnail(rng))


def write_made(folder: Path, entries: Sequence[Entry], about: About) -> None:
    """Write entries as `afmrl embed` does, with the settings that `about` tells."""
    folder.mkdir(parents=True)
    with LinesFile(folder, thumbnails=True) as file:
        for x in entries:
            file.write(x.line, x.thumbnail)
    vectors, ids = np.stack([x.vector for x in entries]), [x.listing_id for x in entries]
    index = Index.build(vectors, ids, settings=about.settings, embedder=about.embedder)
    index.save(folder / INDEX)
    about.write(folder)
