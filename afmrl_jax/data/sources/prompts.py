"""Prompts of the generator, one to a row or packed, and those of RAR's queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.batching.collate import Row, bucket_length
from afmrl_jax.data.batching.row_packing import Prompts, RowPacker
from afmrl_jax.data.sources.batches import PromptBatch
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import epoch_indices

SAMPLES = 32
"""Batches from which the shapes of packed prompts are chosen."""


@dataclass(frozen=True)
class PromptCollator:
    """Rows to batches of prompts that all have one length, whatever is in them."""

    builder: RowBuilder
    length: int
    """Of a prompt for what continues it."""
    packer: RowPacker | None = None
    """None for one prompt to a row."""

    @classmethod
    def of(
        cls,
        builder: RowBuilder,
        lengths: Sequence[int],
        batch_size: int,
        *,
        packed: bool,
        shares: int = 1,
    ) -> PromptCollator:
        """One for batches of rows of such lengths, which `shares` devices divide.

        Keys and values of packed prompts are put in rows of their own, for which they would have
        to travel between such devices: with more than one, prompts stay one to a row.
        """
        length, packer = bucket_length(max(lengths), builder.text), None
        if packed and shares == 1:
            begins = range(0, len(lengths) - batch_size + 1, batch_size)
            samples = [lengths[n : n + batch_size] for n in begins] or [lengths]
            samples = samples[:: -(-len(samples) // SAMPLES)]
            packer = RowPacker.of(
                samples, builder.tokenizer, builder.image, builder.text, host=builder.host
            )
        return cls(builder, length, packer)

    def __call__(self, rows: Sequence[Row]) -> Prompts:
        """A batch of prompts with their pictures."""
        if self.packer is None:
            return self.builder.batch(rows, self.length)
        return self.packer.prompts(rows, self.length)

    def seeing(self, rows: Sequence[Row], visual_start: np.ndarray) -> Prompts:
        """A batch whose pictures lie in another one, each row's visual tokens from there on."""
        if self.packer is None:
            batch = self.builder.batch(rows, self.length, with_patches=False)
            return batch._replace(visual_start=visual_start)
        return self.packer.prompts(rows, self.length, visual_start)


class PromptSource:
    """Prompts of RAR's queries: generator prompts and the positions of their listings."""

    def __init__(
        self,
        collator: PromptCollator,
        queries: np.ndarray,
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ):
        self._collator = collator
        self._queries = queries
        self._steps = steps
        self._batch_size = min(batch_size, len(queries))
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"PromptSource(queries={len(self._queries)}, seed={self._seed})"

    def __getitem__(self, step: int) -> PromptBatch:
        chosen = epoch_indices(len(self._queries), self._batch_size, step, self._seed)
        index, builder = self._queries[chosen], self._collator.builder
        rows = [builder.prompt(int(i)) for i in index]
        return PromptBatch(
            rows=self._collator(rows),
            queries=index.astype(np.int32),
            bad_pictures=builder.bad_pictures(index),
        )
