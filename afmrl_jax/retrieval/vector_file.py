"""Vectors in a file that grows with the work, beside what each was made of: mapped, resumable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import unwritable, write_json
from afmrl_jax.runtime.json_files import read_checked

VECTORS = "vectors.npy"
SOURCES = "sources.npy"
PROGRESS = "progress.json"
_SOURCE = np.dtype("S32")


@dataclass(frozen=True)
class _Progress:
    """The contents of `progress.json`."""

    shape: tuple[int, int]
    key: str
    done: int


class VectorFile:
    """float32 [n d] in a folder, written from the start; records how many rows are done.

    Beside each row stands a name of its source, such as a hash, of up to 32 ASCII characters.

    Args:
        folder: created if missing.
        shape: (n, d).
        key: what the vectors depend on. A file with another key or shape is restarted
            from scratch.

    Raises:
        RunError: the files are damaged, or cannot be written.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], key: str):
        self._folder, self._about = folder, {"shape": list(shape), "key": key}
        state, count = folder / PROGRESS, (shape[0],)
        known = read_checked(state, _Progress) if state.is_file() else None
        there = all((folder / name).is_file() for name in (VECTORS, SOURCES))
        if there and known is not None and (known.shape, known.key) == (shape, key):
            self.done = known.done
            self.values = _opened(folder / VECTORS, shape, np.dtype(np.float32), known.done)
            self._sources = _opened(folder / SOURCES, count, _SOURCE, known.done)
            return
        remove_vectors(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.done = 0
        self.values = new_mapped(folder / VECTORS, shape, np.dtype(np.float32))
        self._sources = new_mapped(folder / SOURCES, count, _SOURCE)
        self._note()

    @property
    def sources(self) -> list[str]:
        """The source of each row that is done."""
        return [x.decode("ascii", "replace") for x in self._sources[: self.done].tolist()]

    def append(self, vectors: np.ndarray, sources: Sequence[str]) -> None:
        """Write the next rows and their sources, and record them as done once they are on disk."""
        if self.done + len(vectors) > len(self.values):
            raise RunError(f"{self._folder}: more vectors than the {len(self.values)} announced")
        self.values[self.done : self.done + len(vectors)] = vectors
        self._sources[self.done : self.done + len(vectors)] = np.array(sources, _SOURCE)
        self.values.flush()
        self._sources.flush()
        self.done += len(vectors)
        self._note()

    def _note(self) -> None:
        write_json(self._folder / PROGRESS, {**self._about, "done": self.done})


def remove_vectors(folder: Path) -> None:
    """Remove a `VectorFile`, and its folder if nothing else is in it."""
    own = (folder / name for name in (VECTORS, SOURCES, PROGRESS))
    for path in (*own, *folder.glob(f".{PROGRESS}.*.partial")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def new_mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A new file of zeros in NumPy's format, mapped, whose space is taken on the disk.

    Raises:
        RunError: the disk has too little space, or the file cannot be written.
    """
    try:
        found = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        # A mapped file that outgrows the disk would kill the process without a message.
        with path.open("r+b") as file:
            _allocate(file, path.stat().st_size)
    except OSError as error:
        raise (unwritable(path, error) or error) from error
    return found


def _opened(path: Path, shape: tuple[int, ...], dtype: np.dtype, done: int) -> np.memmap:
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} and start again") from (
            error
        )
    if found.shape != shape or found.dtype != dtype or not 0 <= done <= len(found):
        raise RunError(f"{path} does not fit its {PROGRESS}; delete {path.parent} and start again")
    return found


def _allocate(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
