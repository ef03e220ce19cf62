"""Tables of mined hard negatives: files in a stage's folder, one for each segment of its steps.

A segment is the steps between two searches. Its table is written before its first batch is drawn
and never changed, so a batch is a pure function of the catalogue, the seed, its number and the
table of its segment. No JAX here: Grain's worker processes import this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.json_files import open_regular


@dataclass(frozen=True)
class NegativeTable:
    """The hard negatives of every training listing."""

    places: np.ndarray
    """int32 [n k]; numbers of listings, hardest first, -1 if fewer were found."""
    embedder: str
    """Identity of the weights that found them."""

    def save(self, path: Path) -> None:
        """Write the table, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, places=self.places, embedder=np.array(self.embedder))

    @classmethod
    def load(cls, path: Path) -> NegativeTable:
        """Read what `save` wrote.

        Raises:
            RunError: there is no such table, or it is broken.
        """
        remedy = f"delete {path.parent.parent} to run that stage again"
        try:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as found:
                places, embedder = found["places"], str(found["embedder"])
        except FileNotFoundError as error:
            raise RunError(f"the mined negatives {path} are missing; {remedy}") from error
        except AfmrlError:
            raise
        except Exception as error:  # What a changed byte raises depends on where it lies.
            raise RunError(f"{path} holds no mined negatives ({error}); {remedy}") from error
        if places.ndim != 2 or places.dtype.kind != "i" or places.min(initial=0) < -1:
            raise RunError(f"{path} holds no table of the training listings; {remedy}")
        return cls(places, embedder)


@lru_cache(maxsize=2)
def _cached(path: Path, changed: int) -> NegativeTable:
    """A table by its path and the time of its last change."""
    del changed
    return NegativeTable.load(path)


@dataclass(frozen=True)
class MinedTables:
    """The tables of one stage."""

    folder: Path
    every: int
    """Steps per segment."""
    count: int
    """Hard negatives per query."""

    def path(self, step: int) -> Path:
        """File of the table of the segment that holds `step`."""
        return self.folder / f"step-{step // self.every * self.every:06d}.npz"

    def __getitem__(self, step: int) -> NegativeTable:
        """Table of the segment that holds `step`."""
        path = self.path(step)
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        return _cached(path, changed)


def fill_up(
    mined: np.ndarray, queries: np.ndarray, identity: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Hard negatives of some queries, with random listings of other products if there are too few.

    So batches have one shape, and every column holds a valid negative.

    Args:
        mined: int [q k], -1 if none was found.
        queries: int [q], numbers of the query listings.
        identity: int [n], product number of every listing.
        rng: used only for the missing ones.

    Returns:
        int [q k].

    Raises:
        RunError: all listings are one product.
    """
    out = mined.copy()
    for row, column in np.argwhere(out < 0):
        others = np.flatnonzero(identity != identity[queries[row]])
        if not len(others):
            raise RunError(
                "all training listings are one product (one duplicate group), so there are no "
                "negatives; correct `duplicate_group`"
            )
        out[row, column] = rng.choice(others)
    return out
