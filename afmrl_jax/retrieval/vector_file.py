"""Vectors of a catalogue in a file that grows with the work: memory-mapped, resumable."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import unwritable, write_json
from afmrl_jax.runtime.json_files import read_checked

VECTORS = "vectors.npy"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class _Progress:
    """The contents of `progress.json`."""

    shape: tuple[int, int]
    key: str
    done: int


class VectorFile:
    """float32 [n d] in a folder, written from the start; records how many rows are done.

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
        path, state = folder / VECTORS, folder / PROGRESS
        known = read_checked(state, _Progress) if state.is_file() else None
        if path.is_file() and known is not None and (known.shape, known.key) == (shape, key):
            self.done = known.done
            self.values = _opened(path, shape, known.done)
            return
        remove_vectors(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.done = 0
        try:
            self.values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            # A mapped file that outgrows the disk would kill the process without a message.
            with path.open("r+b") as file:
                _allocate(file, path.stat().st_size)
        except OSError as error:
            raise (unwritable(path, error) or error) from error
        self._note()

    def append(self, vectors: np.ndarray) -> None:
        """Write the next rows, and record them as done once they are on disk."""
        if self.done + len(vectors) > len(self.values):
            raise RunError(f"{self._folder}: more vectors than the {len(self.values)} announced")
        self.values[self.done : self.done + len(vectors)] = vectors
        self.values.flush()
        self.done += len(vectors)
        self._note()

    def _note(self) -> None:
        write_json(self._folder / PROGRESS, {**self._about, "done": self.done})


def remove_vectors(folder: Path) -> None:
    """Remove a `VectorFile`, and its folder if nothing else is in it."""
    for path in (folder / VECTORS, folder / PROGRESS, *folder.glob(f".{PROGRESS}.*.partial")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _opened(path: Path, shape: tuple[int, int], done: int) -> np.memmap:
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); delete {path.parent} and start again") from (
            error
        )
    if found.shape != shape or found.dtype != np.float32 or not 0 <= done <= len(found):
        raise RunError(f"{path} does not fit its {PROGRESS}; delete {path.parent} and start again")
    return found


def _allocate(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
