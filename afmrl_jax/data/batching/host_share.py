"""Which parts of a batch a process feeds to its devices (no JAX: Grain's workers import it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afmrl_jax.errors import ConfigError


@dataclass(frozen=True)
class HostShare:
    """One of the processes that train together.

    Every process draws the whole batch and makes its rows of text, for the shapes and the random
    numbers depend on all of them, and that is cheap. It decodes only those pictures that go to its
    own devices. The batch over all processes is therefore the one that a single process would see.
    """

    parts: int = 1
    """Size of the mesh axis `data`: equal parts that the rows of an array are split in."""
    own: tuple[int, ...] = (0,)
    """Those of them that lie on this process's devices, whether or not on others' too."""

    def __post_init__(self) -> None:
        if not self.own or not set(self.own) <= set(range(self.parts)):
            raise ConfigError(
                f"a process with the parts {list(self.own)} of {self.parts}: each process needs "
                "devices of the mesh, and parts are numbered from 0"
            )

    @property
    def whole(self) -> bool:
        """Whether all parts are this process's own."""
        return len(set(self.own)) == self.parts

    def needs(self, rows: int) -> np.ndarray:
        """Whether each row of an array is this process's own, bool [rows].

        An array whose rows do not divide lies on every device, as `parallel.sharding.place_batch`
        has it.

        Example:
            >>> HostShare(4, (1, 2)).needs(8).astype(int)
            array([0, 0, 1, 1, 1, 1, 0, 0])
        """
        if rows % self.parts:
            return np.ones(rows, bool)
        return np.isin(np.arange(rows) // max(rows // self.parts, 1), self.own)
