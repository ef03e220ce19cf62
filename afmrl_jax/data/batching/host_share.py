"""Which parts of a batch a process feeds to its devices (no JAX: Grain's workers import it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afmrl_jax.errors import ConfigError


@dataclass(frozen=True)
class HostShare:
    """One of the processes that train together.

    Every process draws the whole batch and builds all its rows of text, which is cheap: the shapes
    and the random numbers depend on all of them. It decodes only the pictures that go to its own
    devices. So the batch over all processes is the one that a single process would see.
    """

    parts: int = 1
    """Size of the mesh axis `data`: the rows of an array are split into so many equal parts."""
    own: tuple[int, ...] = (0,)
    """The parts on this process's devices, whether or not other processes hold them too."""

    def __post_init__(self) -> None:
        if not self.own or not set(self.own) <= set(range(self.parts)):
            raise ConfigError(
                f"a process with the parts {list(self.own)} of {self.parts}: each process needs "
                "devices of the mesh, and parts are numbered from 0"
            )

    @property
    def whole(self) -> bool:
        """Whether this process holds all parts."""
        return len(set(self.own)) == self.parts

    def needs(self, rows: int) -> np.ndarray:
        """Whether each row of an array is on this process's devices, bool [rows].

        An array whose rows cannot be split evenly is on every device, see
        `parallel.sharding.place_batch`.

        Example:
            >>> HostShare(4, (1, 2)).needs(8).astype(int)
            array([0, 0, 1, 1, 1, 1, 0, 0])
        """
        if rows % self.parts:
            return np.ones(rows, bool)
        return np.isin(np.arange(rows) // max(rows // self.parts, 1), self.own)
