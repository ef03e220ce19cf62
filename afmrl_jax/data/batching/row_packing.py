"""Several short rows one after the other in bins of one length, so that few places are padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.collate import Row, VLBatch, collate
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.packing import best_fit_decreasing
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.errors import CatalogueError
from afmrl_jax.types import AnyArray, Bool, Int

LENGTHS = tuple(1 + n / 16 for n in range(17))
"""Candidate lengths of a bin, in multiples of the longest possible row. Fine steps, because rows
of nearly one length, as prompts are, fill a bin only where it is little above a multiple of it."""
LENGTH_PRICE = 4096
"""Attention looks at every place of a bin: a bin of so many places costs twice a short one's
price for each place."""
WORTH = 0.03
"""A further number of bins, and so a further program, must save this share of all places."""
GROWTH = 1 / 16
"""By how much more bins a batch gets that needs more than the samples did."""


class PackedRows(NamedTuple):
    """b rows in n bins of t places; a row looks at itself alone."""

    bins: VLBatch
    """A bin as one row: its positions begin anew with each row inside. Its `visual_start` is that
    of the b rows, and says nothing about bins."""
    segment: Int[AnyArray, "n t"]
    """Number of the row inside the bin, from 1; 0 is padding."""
    visual_number: Int[AnyArray, "n t"]
    """Which visual token a picture place takes, among those of all bins of patches."""
    last: Int[AnyArray, " b"]
    """Where each row ends, counted over the n * t places."""
    bare_last: Int[AnyArray, " b"]
    """The same of `Row.bare_last`."""


class PackedPrompts(NamedTuple):
    """b prompts in bins, and where each lies there: what continues them reads rows of their own."""

    packed: PackedRows
    places: Int[AnyArray, "b s"]
    """The place of each token of a prompt, counted over the n * t places of all bins; n * t behind
    its end."""
    back: Int[AnyArray, "n t"]
    """The inverse, counted over b * s; b * s for padding."""
    mask: Bool[AnyArray, "b s"]
    """False behind the end of a prompt."""


Prompts = VLBatch | PackedPrompts
"""Prompts one to a row, or several to a bin."""


def pictured(prompts: Prompts) -> VLBatch:
    """What of the prompts holds their pictures, or visual features."""
    return prompts.packed.bins if isinstance(prompts, PackedPrompts) else prompts


def with_pictures(prompts: Prompts, pictures: VLBatch) -> Prompts:
    """The prompts with those pictures, or features, that `pictures` has; the opposite of
    `pictured`.
    """
    if isinstance(prompts, PackedPrompts):
        return prompts._replace(packed=prompts.packed._replace(bins=pictures))
    return pictures


@dataclass(frozen=True)
class RowPacker:
    """Turns rows into `PackedRows` of a few shapes."""

    length: int
    """Places of a bin."""
    counts: tuple[int, ...]
    """Numbers of bins, ascending; a batch that needs more gets the last and some more."""
    tokenizer: Tokenizer
    image: ImageConfig
    shares: int = 1
    """Devices that divide the bins evenly."""
    host: HostShare = field(default_factory=HostShare)

    @classmethod
    def of(
        cls,
        samples: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        image: ImageConfig,
        text: TextBudget,
        *,
        shares: int = 1,
        host: HostShare | None = None,
    ) -> RowPacker:
        """The length and the numbers of bins under which batches like the samples cost least.

        Args:
            samples: lengths of the rows of some batches.
            tokenizer: for `collate`.
            image: patch geometry and bins.
            text: its last bucket is the longest possible row.
            shares: devices that divide the bins.
            host: the process whose pictures are filled in; None for all pictures.
        """
        longest = text.buckets[-1]
        best: tuple[float, int, tuple[int, ...]] | None = None
        for factor in LENGTHS:
            length = math.ceil(factor * longest / 8) * 8
            fitting = [x for x in samples if max(x, default=0) <= length]
            needed = [_rounded(len(best_fit_decreasing(x, length)), shares) for x in fitting]
            counts = _counts(np.array(needed or [shares]))
            places = float(np.mean([_smallest(n, counts) for n in needed or [shares]])) * length
            cost = places * (1 + length / LENGTH_PRICE)
            if best is None or cost < best[0]:
                best = cost, length, counts
        assert best is not None
        return cls(best[1], best[2], tokenizer, image, shares, host or HostShare())

    def prompts(
        self, rows: Sequence[Row], length: int, visual_start: np.ndarray | None = None
    ) -> PackedPrompts:
        """The bins of a batch, and the places of each row padded to `length`; else as a call."""
        packed, inside = self(rows, visual_start), np.arange(length, dtype=np.int32)
        sizes = np.array([len(row.tokens) for row in rows], np.int32)[:, None]
        mask, tokens = inside < sizes, packed.bins.tokens
        first = packed.last[:, None] - sizes + 1
        places = np.where(mask, first + inside, np.int32(tokens.size))
        back = np.full(tokens.size, mask.size, np.int32)
        back[places[mask]] = np.flatnonzero(mask)
        return PackedPrompts(packed, places, back.reshape(tokens.shape), mask)

    def __call__(self, rows: Sequence[Row], visual_start: np.ndarray | None = None) -> PackedRows:
        """The bins of a batch.

        Args:
            rows: b of them.
            visual_start: where each row's visual tokens begin, int32 [b], if its pictures lie in
                another batch; the bins then come without pictures.

        Raises:
            CatalogueError: a row is longer than the longest text bucket.
        """
        sizes = [len(row.tokens) for row in rows]
        if max(sizes) > self.length:
            raise CatalogueError(
                f"a row of {max(sizes)} tokens, those of its pictures included, exceeds the bins "
                f"of {self.length} tokens that rows are packed in; add a bucket to text.buckets, "
                "or lower text.max_title_tokens, text.max_attribute_tokens or image.max_pixels"
            )
        found = best_fit_decreasing(sizes, self.length)
        count = self._count(len(found))
        flat = collate(
            rows,
            self.tokenizer,
            self.image,
            max(sizes),
            with_patches=visual_start is None,
            host=self.host,
        )
        if visual_start is not None:
            flat = flat._replace(visual_start=visual_start)
        pictured = flat.tokens == self.tokenizer.image_pad_id
        number = flat.visual_start[:, None] + np.cumsum(pictured, axis=1, dtype=np.int32) - 1
        lead = (count, self.length)
        tokens = np.full(lead, self.tokenizer.pad_id, np.int32)
        mask, segment = np.zeros(lead, bool), np.zeros(lead, np.int32)
        positions, numbers = np.zeros((count, 3, self.length), np.int32), np.zeros(lead, np.int32)
        first = np.zeros(len(rows), np.int32)
        for chosen, items in enumerate(found):
            offset = 0
            for inside, row in enumerate(items, 1):
                own, size = slice(offset, offset + sizes[row]), sizes[row]
                tokens[chosen, own] = rows[row].tokens
                mask[chosen, own] = True
                segment[chosen, own] = inside
                positions[chosen, :, own] = flat.positions[row, :, :size]
                numbers[chosen, own] = number[row, :size]
                first[row] = chosen * self.length + offset
                offset = own.stop
        bins = flat._replace(tokens=tokens, token_mask=mask, positions=positions)
        last = first + np.array(sizes, np.int32) - 1
        bare = first + np.array([row.bare_last for row in rows], np.int32)
        return PackedRows(bins, segment, numbers, last, bare)

    def _count(self, needed: int) -> int:
        for count in self.counts:
            if needed <= count:
                return count
        count = self.counts[-1]
        while count < needed:
            count = _rounded(count + math.ceil(GROWTH * count), self.shares)
        return count


def _rounded(count: int, shares: int) -> int:
    """The next multiple of the number of devices."""
    return math.ceil(count / shares) * shares


def _smallest(needed: int, counts: Sequence[int]) -> int:
    return min(x for x in counts if x >= needed)


def _counts(needed: np.ndarray) -> tuple[int, ...]:
    """The largest number, and those below it that are worth a program.

    Example:
        >>> _counts(np.array([9, 10, 10, 12])), _counts(np.array([50, 50, 51]))
        ((10, 12), (51,))
        >>> _counts(np.array([10] * 4 + [15] * 4 + [20] * 4))
        (10, 15, 20)
    """
    chosen, options = [int(needed.max())], np.unique(needed).tolist()
    places = float(chosen[0])
    while len(chosen) < len(options):
        trials = {n: _mean_places(needed, [*chosen, n]) for n in options if n not in chosen}
        best = min(trials, key=lambda n: (trials[n], n))
        if trials[best] >= (1 - WORTH) * places:
            break
        chosen.append(best)
        places = trials[best]
    return tuple(sorted(chosen))


def _mean_places(needed: np.ndarray, counts: Sequence[int]) -> float:
    """Bins that a batch gets on average."""
    own = np.sort(np.array(counts))
    return float(own[np.searchsorted(own, needed)].mean())
