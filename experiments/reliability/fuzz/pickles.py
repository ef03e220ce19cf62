"""Pickles that show whether anything unpickles them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np

NAMES = (
    "scann_docids.pkl",
    "docids.pkl",
    "index.pkl",
    "index.json.pkl",
    "vectors.pkl",
    "vectors.npy.pickle",
    "dataset.pt",
    "pytorch_model.bin",
    "checkpoint.joblib",
)
"""ScaNN's loader reads the first; others are looked for by other libraries."""


class _Tells:
    """Makes a folder where nothing may be made as soon as it is unpickled."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._folder),)


def plant_pickles(folder: Path, outside: Path) -> None:
    """Put pickles under all those names into a folder and its subfolders.

    Args:
        folder: of an input.
        outside: a folder that no case may touch; there it shows if one is unpickled.
    """
    data = pickle.dumps(_Tells(outside / "unpickled"))
    for place in (folder, *(x for x in folder.rglob("*") if x.is_dir())):
        for name in NAMES:
            (place / name).write_bytes(data)


def write_pickled_array(path: Path, outside: Path) -> None:
    """An `.npy` file whose values are a pickle."""
    values = np.array([_Tells(outside / "unpickled")], object)
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=True)
