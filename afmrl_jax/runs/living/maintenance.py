"""Removing listings, taking the log into the folder, and saying what a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.inference.index import Index
from afmrl_jax.retrieval.vector_file import new_mapped
from afmrl_jax.runs.embedded import INDEX, LOG
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.living.writing import COMMAND
from afmrl_jax.runs.thumbnails import LinesFile
from afmrl_jax.runtime.files import atomic_path, sync_folder, sync_tree
from afmrl_jax.runtime.json_files import lines_of
from afmrl_jax.types import JsonObject

VECTORS = ".vectors.npy"
"""All vectors in one mapped file, while an index is built of them."""


def remove_listings(folder: Path, ids: Sequence[str]) -> int:
    """Remove listings; on disk when this returns. Their number is given.

    Raises:
        RunError: an id is repeated or unknown (then nothing was removed), or the folder is damaged
            or written by another process.
    """
    with LivingIndex(folder, writer=f"{COMMAND} remove") as index:
        index.remove(ids)
    return len(ids)


def read_ids(path: Path) -> list[str]:
    """The ids of a text file, one a line.

    Raises:
        RunError: it cannot be read, or is not UTF-8.
    """
    try:
        return [line.decode().strip() for _, line in lines_of(path)]
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 ({error.reason}); write one id a line") from error


def compact(folder: Path) -> int:
    """Write a folder anew with the changes of its log, which is then empty; gives its listings.

    The folder is exchanged as a whole once the new one is on disk, so that there is always one with
    all that was acknowledged.

    Raises:
        RunError: no listing is left, or the folder is damaged or written by another process.
    """
    with LivingIndex(folder, writer=f"{COMMAND} compact") as index:
        count = len(index)
        if not count:
            raise RunError(f"{folder} has no listing left, and an index needs one; add some first")
        # An empty log, or one with only the name of its folder, changes nothing.
        if index.log.count > 1:
            _write(index, index.folder, count)
    return count


def _write(index: LivingIndex, folder: Path, count: int) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        path = temporary / VECTORS
        vectors = new_mapped(path, (count, index.dim), np.dtype(np.float32))
        ids = list[str]()
        small = index.about.thumbnails is not None
        with LinesFile(temporary, thumbnails=small) as lines:
            for number, x in enumerate(index.entries()):
                vectors[number] = x.vector
                ids.append(x.listing_id)
                lines.write(x.line, x.thumbnail)
        about = index.about
        Index.build(vectors, ids, settings=about.settings, embedder=about.embedder).save(
            temporary / INDEX
        )
        del vectors
        path.unlink()
        replace(about, files={}).write(temporary)
        sync_tree(temporary)
    sync_folder(folder.parent)


def stats(folder: Path) -> JsonObject:
    """What a folder holds, for people and programs.

    Raises:
        RunError: the folder is damaged.
    """
    with LivingIndex(folder) as index:
        about, log = index.about, folder / LOG
        columns = dict[str, int]()
        for x in index.entries():
            for name in x.line.get("extra") or {}:
                columns[name] = columns.get(name, 0) + 1
        size = sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())
        return {
            **index.counts,
            "removed": len(index.stored_ids) - index.counts["base"],
            "catalogue": about.catalogue,
            "system": about.system,
            "embedder": about.embedder,
            "attributes": about.attributes,
            "kind": index.kind,
            "dtype": index.dtype,
            "dim": index.dim,
            "thumbnails": about.thumbnails,
            "columns": dict(sorted(columns.items())),
            "changes": max(0, index.log.count - 1),
            "log_bytes": log.stat().st_size if log.is_file() else 0,
            "bytes": size,
        }
