"""Vectors of a catalogue in a file that grows with the work: memory-mapped, resumable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import disk_full, is_disk_full, write_json
from afmrl_jax.runtime.json_files import read_json


class VectorFile:
    """float32 [n d] in a folder, written from the start; records how many rows are done.

    Args:
        folder: created if missing.
        shape: (n, d).
        key: what the vectors depend on. A file with another key or shape is restarted
            from scratch.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], key: str):
        self._folder, self._about = folder, {"shape": list(shape), "key": key}
        path, state = folder / "vectors.npy", folder / "progress.json"
        known = read_json(state) if state.is_file() else {}
        if path.is_file() and {k: known.get(k) for k in self._about} == self._about:
            self.done = int(known["done"])
            self.values = np.lib.format.open_memmap(path, mode="r+")
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.done = 0
        try:
            self.values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            # A mapped file that outgrows the disk would kill the process without a message.
            with path.open("r+b") as file:
                _allocate(file, path.stat().st_size)
        except OSError as error:
            raise (disk_full(path) if is_disk_full(error) else error) from error
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
        write_json(self._folder / "progress.json", {**self._about, "done": self.done})


def _allocate(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
