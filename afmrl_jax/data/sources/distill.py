"""Batches that the generator is distilled from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.augmentation import open_keys, swap_words, word_pool
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.row_packing import PackedRows, RowPacker
from afmrl_jax.data.sources.batches import DistillBatch
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import epoch_indices
from afmrl_jax.types import Modality

SAMPLES = 32
"""Batches from which the shapes of packed rows are chosen."""


class DistillSource:
    """Teacher-forced rows for the generator: prompt, then the oracle's list; loss only on the list.

    The first half of a batch walks through the listings epoch by epoch. The second half holds, for
    each of them, another listing of its product if there is one. In `swap_share` of the rows the
    words that title and list have in common are replaced in both. `title_dropout` of the rows have
    no title, and `picture_dropout` no picture, each drawn for itself, so that what is missing does
    not tell which rows are of one product. With `packed` the rows are `PackedRows`, in shapes
    chosen from the first batches, for `shares` devices.
    """

    def __init__(
        self,
        builder: RowBuilder,
        oracle: Sequence[str],
        *,
        steps: int,
        batch_size: int,
        seed: int,
        structure_weight: float = 1.0,
        swap_share: float = 0.0,
        title_dropout: float = 0.0,
        picture_dropout: float = 0.0,
        packed: bool = False,
        shares: int = 1,
    ):
        self._builder = builder
        self._oracle = oracle
        self._steps = steps
        self._pairs = max(1, min(batch_size, len(oracle)) // 2)
        self._seed = seed
        self._structure_weight = structure_weight
        self._swap_share = swap_share
        self._title_dropout, self._picture_dropout = title_dropout, picture_dropout
        self._words = word_pool([x.title for x in builder.listings])
        self._open_keys = open_keys(oracle)
        names = sorted({x.product_id for x in builder.listings})
        number = {name: n for n, name in enumerate(names)}
        self._products = np.array([number[x.product_id] for x in builder.listings], np.int32)
        order = np.argsort(self._products, kind="stable")
        self._of_product = np.split(order, np.cumsum(np.bincount(self._products))[:-1])
        self._packer: RowPacker | None = None
        if packed:
            self._packer = builder.packer((self._rows(n)[0] for n in range(SAMPLES)), shares)

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"DistillSource(listings={len(self._oracle)}, seed={self._seed})"

    def _partner(self, place: int, rng: np.random.Generator) -> int:
        others = self._of_product[self._products[place]]
        others = others[others != place]
        return int(rng.choice(others)) if len(others) else place

    def _shown(self, rng: np.random.Generator) -> Modality:
        """What a row's prompt shows."""
        if not self._title_dropout + self._picture_dropout:
            return "both"  # Draws nothing, so the batches are those that there were before.
        hidden = float(rng.random()) - self._title_dropout
        return "image" if hidden < 0 else "text" if hidden < self._picture_dropout else "both"

    def _rows(self, step: int) -> tuple[list[Row], list[int], list[list[float]], list[int]]:
        """Rows, where the list begins in each, its tokens' weights, and places of the listings."""
        builder, rng = self._builder, np.random.default_rng([self._seed, step, 2])
        first = epoch_indices(len(self._oracle), self._pairs, step, self._seed)
        places = [int(p) for p in first] + [self._partner(int(p), rng) for p in first]
        rows, starts, weights = [], [], []
        for place in places:
            title, text = builder.listings[place].title, self._oracle[place]
            shown = self._shown(rng)
            # A lone picture shows none of the words that another title would have.
            if rng.random() < self._swap_share and shown != "image":
                title, text = swap_words(
                    title, text, keys=self._open_keys, pool=self._words, rng=rng
                )
            prompt = builder.showing(shown).prompt(place, title)
            wanted = prompts.completion_tokens(builder.tokenizer, text, builder.text)
            weights.append(prompts.value_weights(builder.tokenizer, wanted, self._structure_weight))
            starts.append(len(prompt.tokens))
            rows.append(Row(prompt.tokens + wanted, prompt.pictures))
        return rows, starts, weights, places

    def __getitem__(self, step: int) -> DistillBatch:
        rows, starts, weights, places = self._rows(step)
        batch = self._builder.batch(rows) if self._packer is None else self._packer(rows)
        last = np.array(starts, np.int32) - 1
        if isinstance(batch, PackedRows):
            flat = batch.bins
            ends = batch.last - np.array([len(row.tokens) - 1 for row in rows], np.int32) + last
            prompt_last = ends
        else:
            flat = batch
            prompt_last, ends = last, last + flat.tokens.shape[1] * np.arange(len(rows))
        weight = np.zeros(flat.tokens.size, np.float32)
        for end, values in zip(ends, weights, strict=True):
            # Position i predicts token i + 1, so the first of the list is predicted by the prompt.
            weight[end : end + len(values)] = values
        return DistillBatch(
            rows=batch,
            targets=np.roll(flat.tokens, -1, axis=1),
            weights=weight.reshape(flat.tokens.shape),
            prompt_last=prompt_last,
            products=self._products[places[: self._pairs]],
            bad_pictures=self._builder.bad_pictures(places),
        )
