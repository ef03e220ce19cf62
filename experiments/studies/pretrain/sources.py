"""Batches of pretraining: each a function of the pool, the seed and its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from afmrl_jax.config import ImageConfig, TextBudget, ViewShares
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.images import Patches, cut, erase_patches
from afmrl_jax.data.batching.row_packing import RowPacker
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.sources.batches import ContrastiveBatch, DistillBatch
from afmrl_jax.data.sources.sampler import epoch_indices
from afmrl_jax.data.sources.views import PERIOD, Sides, view_of
from afmrl_jax.types import Modality
from experiments.studies.pretrain.pool import PHOTOS, Pool

View = TypeVar("View")

SAMPLES = 24
"""Batches from which the shapes of packed rows are chosen."""

VIEWS = ViewShares(
    image_text=0.45, text_image=0.35, image_image=0.05, image_both=0.05, text_both=0.05
)
"""Mostly words and pictures, which meet slowly. Few steps have pictures on both sides: these would
teach what titles do not say, which is left to the generator's lists."""


@dataclass(frozen=True)
class Material:
    """What both sources make rows of."""

    pool: Pool
    tokenizer: BpeTokenizer
    image: ImageConfig
    text: TextBudget

    def picture(self, number: int, photo: int) -> tuple[Patches, ...]:
        """A photo of a sample as patches; its sides must be whole visual tokens."""
        return (cut(self.pool.pixels(number, photo), self.image),)

    def packer(self, samples: Sequence[Sequence[Row]]) -> RowPacker:
        """Packs batches like the samples."""
        lengths = [[len(row.tokens) for row in rows] for rows in samples]
        return RowPacker.of(lengths, self.tokenizer, self.image, self.text)


@dataclass(frozen=True)
class WritingSource:
    """Teacher-forced rows for the generator: a photo, a title or both, then a list or a caption."""

    material: Material
    steps: int
    batch_size: int
    seed: int
    captions: float = 0.25
    """Share of rows that go on with a caption in place of a list."""
    without_title: float = 0.5
    """Share of rows with the photo alone; the title must not make looking superfluous."""
    without_photo: float = 0.1
    """Share of rows with the title alone."""

    def __len__(self) -> int:
        return self.steps

    @cached_property
    def _packer(self) -> RowPacker:
        return self.material.packer([self._rows(step)[0] for step in range(SAMPLES)])

    def _rows(self, step: int) -> tuple[list[Row], list[int], np.ndarray]:
        """Rows, where what is to be written begins in each, and the samples' numbers."""
        own, pool = self.material, self.material.pool
        rng = np.random.default_rng([self.seed, step, 1])
        numbers = epoch_indices(pool.size, self.batch_size, step, self.seed)
        rows, starts = [], []
        for number in numbers.tolist():
            words, photo = pool.words(number), int(rng.integers(PHOTOS))
            told, hidden = rng.random(2)
            titled = hidden >= self.without_title
            seen = hidden < 1 - self.without_photo
            text = words.captions if told < self.captions else words.lists
            prompt = prompts.generator_prompt(
                own.tokenizer,
                own.text,
                own.image,
                title=words.titles[photo] if titled else None,
                pictures=own.picture(number, photo) if seen else (),
            )
            chosen = text[int(rng.integers(len(text)))]
            wanted = prompts.completion_tokens(own.tokenizer, chosen, own.text)
            starts.append(len(prompt.tokens))
            rows.append(Row(prompt.tokens + wanted, prompt.pictures))
        return rows, starts, numbers

    def __getitem__(self, step: int) -> DistillBatch:
        rows, starts, numbers = self._rows(step)
        packed = self._packer(rows)
        tokens = packed.bins.tokens
        first = packed.last - np.array([len(row.tokens) - 1 for row in rows], np.int32)
        ends = first + np.array(starts, np.int32) - 1
        weights = np.zeros(tokens.size, np.float32)
        for row, end, start in zip(rows, ends, starts, strict=True):
            weights[end : end + len(row.tokens) - start] = 1
        return DistillBatch(
            rows=packed,
            targets=np.roll(tokens, -1, axis=1),
            weights=weights.reshape(tokens.shape),
            prompt_last=ends,
            products=numbers[: len(rows) // 2].astype(np.int32),
        )


@dataclass(frozen=True)
class ViewSource(ABC, Generic[View]):
    """Two offers of a product as a pair, the pairs of a step all shown through one view."""

    material: Material
    steps: int
    batch_size: int
    seed: int
    erased: float = 0.2
    """Probability that a visual token is erased."""

    def __len__(self) -> int:
        return self.steps

    @abstractmethod
    def view(self, step: int) -> View:
        """What queries and targets of a step show."""

    @abstractmethod
    def _rows(self, step: int) -> tuple[list[Row], np.ndarray]:
        """Rows of queries and then targets, and the number of each pair's product."""

    @cached_property
    def _packers(self) -> dict[View, RowPacker]:
        found: dict[View, list[list[Row]]] = {}
        for step in range(max(SAMPLES, PERIOD)):
            found.setdefault(self.view(step), []).append(self._rows(step)[0])
        return {view: self.material.packer(rows) for view, rows in found.items()}

    def __getitem__(self, step: int) -> ContrastiveBatch:
        rows, numbers = self._rows(step)
        packed = self._packers[self.view(step)](rows)
        return ContrastiveBatch(rows=packed, products=numbers.astype(np.int32))


@dataclass(frozen=True)
class PairSource(ViewSource[Sides]):
    """Pairs for the embedder: two sellers' offers of a product, each seen through one view."""

    views: ViewShares = VIEWS

    def view(self, step: int) -> Sides:
        """What queries and targets of a step show."""
        return view_of(step, self.views, self.seed)

    def _row(self, number: int, offer: int, side: Modality, rng: np.random.Generator) -> Row:
        own = self.material
        seen = () if side == "text" else own.picture(number, offer)
        pictures = tuple(erase_patches(x, rng, self.erased, own.image) for x in seen)
        title = None if side == "image" else own.pool.words(number).titles[offer]
        return prompts.embedder_row(
            own.tokenizer, own.text, own.image, title=title, attributes=None, pictures=pictures
        )

    def _rows(self, step: int) -> tuple[list[Row], np.ndarray]:
        rng = np.random.default_rng([self.seed, step, 2])
        numbers = epoch_indices(self.material.pool.size, self.batch_size, step, self.seed + 1)
        one, other = self.view(step)
        first = rng.integers(PHOTOS, size=len(numbers)).tolist()
        queries = [self._row(n, p, one, rng) for n, p in zip(numbers.tolist(), first, strict=True)]
        targets = [
            self._row(n, 1 - p, other, rng) for n, p in zip(numbers.tolist(), first, strict=True)
        ]
        return queries + targets, numbers
