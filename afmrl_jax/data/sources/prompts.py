"""Prompts of RAR's queries."""

from __future__ import annotations

import numpy as np

from afmrl_jax.data.sources.batches import PromptBatch
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import epoch_indices


class PromptSource:
    """Prompts of RAR's queries: generator prompts and the positions of their listings."""

    def __init__(
        self,
        builder: RowBuilder,
        queries: np.ndarray,
        *,
        length: int,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        self._builder = builder
        self._queries = queries
        self._length = length
        self._steps = steps
        self._batch_size = min(batch_size, len(queries))
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"PromptSource(queries={len(self._queries)}, seed={self._seed})"

    def __getitem__(self, step: int) -> PromptBatch:
        chosen = epoch_indices(len(self._queries), self._batch_size, step, self._seed)
        index = self._queries[chosen]
        rows = [self._builder.prompt(int(i)) for i in index]
        return PromptBatch(
            rows=self._builder.batch(rows, self._length),
            queries=index.astype(np.int32),
            bad_pictures=self._builder.bad_pictures(index),
        )
