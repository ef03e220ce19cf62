"""A large batch in chunks by token budget: rows sorted by length, pictures repacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.chunk_arrays import (
    Chunks,
    PatchChunks,
    TextChunks,
    empty_bins,
    fill_bin,
)
from afmrl_jax.data.batching.chunk_shapes import (
    Budget,
    Misfit,
    Shape,
    chunk_slices,
    chunks_needed,
    divide,
)
from afmrl_jax.data.batching.collate import Row, collate, picture_patches, visual_tokens
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.packing import best_fit_decreasing
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.errors import CatalogueError

DEVIATIONS = 4.0
"""A plan has room up to so many standard deviations above the mean."""


class Plan(NamedTuple):
    """Shapes of a batch: one program."""

    text: tuple[Shape, ...]
    """Rows of all devices."""
    bins: tuple[Shape, ...]
    """Bins of one device."""
    visual: int
    """Visual tokens of one device, if they are known without the vision tower."""


class _Dealt(NamedTuple):
    """Rows in the slots of a plan's text shapes."""

    used: list[int]
    """Chunks of each shape that hold rows."""
    slot: np.ndarray
    """int [b]; slot of each row."""
    share: np.ndarray
    """int [b]; device of each row."""


@dataclass(frozen=True)
class Chunker:
    """Turns rows into `Chunks`, by the first of a few plans that has room for them."""

    plans: tuple[Plan, ...]
    shares: int
    tokenizer: Tokenizer
    image: ImageConfig
    host: HostShare = field(default_factory=HostShare)

    @classmethod
    def of(
        cls,
        samples: Sequence[Sequence[Row]],
        tokenizer: Tokenizer,
        image: ImageConfig,
        text: TextBudget,
        *,
        tokens: int,
        shares: int,
        host: HostShare | None = None,
    ) -> Chunker:
        """Plans for batches like the samples.

        The first plan has enough chunks of each shape for nearly all batches, and chunks that a
        batch leaves empty are skipped; the second holds any batch. So one program is compiled, and
        rarely another.

        Args:
            samples: rows of some batches.
            tokenizer: for `collate`.
            image: patch geometry and the capacity of a bin.
            text: its last bucket is the longest possible row.
            tokens: positions of a chunk on each device, including pictures and padding.
            shares: devices that divide the rows of a batch.
            host: the process whose pictures are filled in; None for all pictures.
        """
        budget, longest = Budget(tokens, shares), text.buckets[-1]
        patches = Budget(tokens * image.merge_size**2)
        lengths = [_lengths(rows) for rows in samples]
        cached = any(_is_cached(rows) for rows in samples)
        last = _plan_for_any(budget, patches, max(map(len, lengths)), longest, image, cached)
        shapes = divide(lengths, budget, DEVIATIONS, longest)
        dealt = []
        for rows, own in zip(samples, lengths, strict=True):
            try:
                chunks_needed(own, shapes)
                dealt.append(_deal(rows, shapes, shares))
            except Misfit:
                dealt.append(_deal(rows, last.text, shares))
        if cached:
            totals = [_per_share(rows, d, shares) for rows, d in zip(samples, dealt, strict=True)]
            plan = Plan(shapes, (), _room(np.concatenate(totals)))
        else:
            fills = [
                _bins_of_share(rows, d, share, image.bin_patches)[1]
                for rows, d in zip(samples, dealt, strict=True)
                for share in range(shares)
            ]
            plan = Plan(shapes, divide(fills, patches, DEVIATIONS, image.bin_patches), 0)
        return cls((plan, last), shares, tokenizer, image, host or HostShare())

    def __call__(self, rows: Sequence[Row]) -> Chunks:
        """The chunks of a batch.

        Raises:
            CatalogueError: a row is longer than any text bucket, or a batch larger than planned.
        """
        for plan in self.plans:
            try:
                return self._fill(rows, plan)
            except Misfit:
                continue
        found, longest = _lengths(rows)[0], self.plans[-1].text[0].length
        if found > longest:
            raise CatalogueError(
                f"a row of {found} tokens, those of its pictures included, exceeds the "
                f"largest text bucket {longest}; add a bucket to text.buckets, or lower "
                "text.max_title_tokens, text.max_attribute_tokens or image.max_pixels"
            )
        raise CatalogueError(
            f"a batch of {len(rows)} rows is larger than those the chunks were planned for"
        )

    def _fill(self, rows: Sequence[Row], plan: Plan) -> Chunks:
        dealt = _deal(rows, plan.text, self.shares)
        start = np.zeros(sum(x.slots for x in plan.text), np.int32)
        pictures: tuple[PatchChunks, ...] = ()
        visual = None
        if plan.visual:
            visual = self._known_tokens(rows, dealt, plan.visual, start)
        elif plan.bins:
            pictures = self._pack(rows, dealt, plan.bins, start)
        elif any(row.pictures for row in rows):
            raise Misfit
        texts, base = [], 0
        at_slot: list[Row | None] = [None] * len(start)
        for row, slot in zip(rows, dealt.slot, strict=True):
            at_slot[slot] = row
        for shape, used in zip(plan.text, dealt.used, strict=True):
            own = slice(base, base + shape.slots)
            texts.append(self._text(at_slot[own], start[own], shape, used))
            base = own.stop
        return Chunks(tuple(texts), pictures, visual, dealt.slot.astype(np.int32))

    def _text(
        self, rows: Sequence[Row | None], start: np.ndarray, shape: Shape, used: int
    ) -> TextChunks:
        empty = Row([self.tokenizer.pad_id])
        filled = [empty if row is None else row for row in rows]
        flat = collate(filled, self.tokenizer, self.image, shape.length, with_patches=False)
        lead = (shape.chunks, self.shares, shape.rows // self.shares)
        bare = np.array([row.bare_last for row in filled], np.int32)

        def shaped(x: np.ndarray) -> np.ndarray:
            return x.reshape(*lead, *x.shape[1:])

        return TextChunks(
            shaped(flat.tokens),
            shaped(flat.token_mask),
            shaped(flat.positions),
            shaped(start),
            shaped(bare),
            np.int32(used),
        )

    def _pack(
        self, rows: Sequence[Row], dealt: _Dealt, shapes: tuple[Shape, ...], start: np.ndarray
    ) -> tuple[PatchChunks, ...]:
        """Bins of all devices; writes to `start` where each slot's visual tokens begin."""
        config, merged = self.image, self.image.merge_size**2
        packed = [_bins_of_share(rows, dealt, d, config.bin_patches) for d in range(self.shares)]
        needed = [chunks_needed(fills, shapes) for _, fills in packed]
        used = [max(counts) for counts in zip(*needed, strict=True)]
        chunks = [
            empty_bins(shape, self.shares, config, count)
            for shape, count in zip(shapes, used, strict=True)
        ]
        sizes = [x.length // merged for x in shapes]
        first = np.cumsum([0, *(x.slots * size for x, size in zip(shapes, sizes, strict=True))])
        filled = self.host.needs(self.shares)
        for share, ((bins, _), counts) in enumerate(zip(packed, needed, strict=True)):
            for k, n, items in chunk_slices(counts, shapes):
                for m, numbers in enumerate(bins[items]):
                    begin = int(first[k]) + (n * shapes[k].rows + m) * sizes[k]
                    inside = [rows[i] for i in numbers]
                    fill_bin(chunks[k], (n, share, m), inside, with_pixels=filled[share])
                    offset = 0
                    for number in numbers:
                        start[dealt.slot[number]] = begin + offset // merged
                        offset += picture_patches(rows[number])
        return tuple(chunks)

    def _known_tokens(
        self, rows: Sequence[Row], dealt: _Dealt, room: int, start: np.ndarray
    ) -> VisualFeatures:
        known = [x.tokens for row in rows for x in row.pictures if x.tokens is not None]
        width, dtype = (known[0].shape[1], known[0].dtype) if known else (0, np.float32)
        if not known:
            raise Misfit
        out = np.zeros((self.shares, room, width), dtype)
        used = [0] * self.shares
        for number, row in enumerate(rows):
            share, found = dealt.share[number], visual_tokens(row)
            start[dealt.slot[number]] = used[share]
            end = used[share] + len(found)
            if end > room:
                raise Misfit
            if len(found):
                out[share, used[share] : end] = found
            used[share] = end
        return VisualFeatures(out)


def _lengths(rows: Sequence[Row]) -> np.ndarray:
    return np.sort([len(row.tokens) for row in rows])[::-1]


def _is_cached(rows: Sequence[Row]) -> bool:
    return any(x.tokens is not None for row in rows for x in row.pictures)


def _deal(rows: Sequence[Row], shapes: Sequence[Shape], shares: int) -> _Dealt:
    """Longest rows to the longest slots; each chunk's patches are spread over the devices."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    used = chunks_needed(np.array([len(rows[i].tokens) for i in order]), shapes)
    patches = [picture_patches(row) for row in rows]
    slot, share = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    first = np.cumsum([0, *(x.slots for x in shapes)])
    totals = [0] * shares
    for number, chunk, items in chunk_slices(used, shapes):
        room = shapes[number].rows // shares
        base = int(first[number]) + chunk * shapes[number].rows
        filled = [0] * shares
        for row in sorted(order[items], key=lambda i: -patches[i]):
            chosen = min((d for d in range(shares) if filled[d] < room), key=totals.__getitem__)
            slot[row], share[row] = base + chosen * room + filled[chosen], chosen
            filled[chosen] += 1
            totals[chosen] += patches[row]
    return _Dealt(used, slot, share)


def _plan_for_any(
    budget: Budget, patches: Budget, rows: int, longest: int, image: ImageConfig, cached: bool
) -> Plan:
    """Room for `rows` rows of the longest length, each with pictures that fill a bin."""
    text = budget.shape(longest, rows)
    own = text.slots // budget.devices
    if cached:
        return Plan((text,), (), own * image.bin_patches // image.merge_size**2)
    return Plan((text,), (patches.shape(image.bin_patches, own),), 0)


def _bins_of_share(
    rows: Sequence[Row], dealt: _Dealt, share: int, capacity: int
) -> tuple[list[list[int]], np.ndarray]:
    """Numbers of the rows in each bin of a device, fullest bin first, and the bins' fills."""
    own = np.flatnonzero(dealt.share == share).tolist()
    sizes = [picture_patches(rows[i]) for i in own]
    bins = best_fit_decreasing(sizes, capacity)
    filled = sorted(((sum(sizes[i] for i in x), x) for x in bins), key=lambda pair: -pair[0])
    fills = np.array([fill for fill, _ in filled], np.int64)
    return [[own[i] for i in x] for _, x in filled], fills


def _per_share(rows: Sequence[Row], dealt: _Dealt, shares: int) -> np.ndarray:
    """Visual tokens of each device's rows, int [s]."""
    tokens = [len(visual_tokens(row)) for row in rows]
    return np.bincount(dealt.share, weights=tokens, minlength=shares).astype(np.int64)


def _room(totals: np.ndarray) -> int:
    """How many visual tokens a device has room for, from the devices' totals in some batches."""
    return max(1, math.ceil(totals.mean() + DEVIATIONS * totals.std()))
