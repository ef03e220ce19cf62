"""Which rows of a batch a host feeds to its devices (no JAX here: Grain's workers import it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from afmrl_jax.errors import ConfigError


@dataclass(frozen=True)
class HostShare:
    """One of the hosts that train together.

    Every host draws and collates the whole batch, for its shape (text bucket, bins of patches) and
    its random numbers depend on all rows, and then takes its own rows. The batch over all hosts is
    therefore the one that a single host would see.
    """

    index: int = 0
    """Number of this host, `jax.process_index()`."""
    count: int = 1
    """Number of hosts, `jax.process_count()`."""
    shards: int | None = None
    """Size of the mesh axis `data`; None: as many as hosts."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"host {self.index} of {self.count}: numbers start at 0")
        if self.data % self.count:
            raise ConfigError(
                f"a data axis of {self.data} does not divide among {self.count} hosts; choose a "
                "multiple with --mesh.data"
            )

    @property
    def data(self) -> int:
        """Parts that the rows of a batch are split in."""
        return self.count if self.shards is None else self.shards

    def of(self, batch: Any) -> Any:
        """This host's rows of each array of a batch, along the first axis.

        An array whose rows the data axis does not divide is on every device, and stays whole, as
        `parallel.sharding.place_batch` has it.
        """
        if self.count == 1 or batch is None:
            return batch
        if isinstance(batch, Mapping):
            return {name: self.of(value) for name, value in batch.items()}
        if isinstance(batch, tuple):
            fields = [self.of(value) for value in batch]
            return type(batch)(*fields) if hasattr(batch, "_fields") else tuple(fields)
        return self._rows(np.asarray(batch))

    def _rows(self, array: np.ndarray) -> np.ndarray:
        if not array.ndim or array.shape[0] % self.data:
            return array
        size = array.shape[0] // self.count
        return array[self.index * size : (self.index + 1) * size]
