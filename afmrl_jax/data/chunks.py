"""A large batch in chunks by token budget: rows sorted by length, pictures packed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from afmrl_jax.data.batches import Row, collate, picture_patches, visual_tokens
from afmrl_jax.data.chunk_shapes import Budget, Shape, cover, divide, fits
from afmrl_jax.data.packing import best_fit_decreasing
from afmrl_jax.data.text import Tokenizer
from afmrl_jax.errors import CatalogueError
from afmrl_jax.model_config import ImageConfig, TextBudget


class TextChunks(NamedTuple):
    """n chunks of one shape: rows of text for s devices, r each, of t places."""

    tokens: Any
    """int32 [n s r t]"""
    token_mask: Any
    """bool [n s r t]; of an empty row the first place alone, so that no softmax is void."""
    positions: Any
    """int32 [n s r 3 t]"""
    visual_start: Any
    """int32 [n s r]; counted through all visual tokens of the row's device."""
    bare_last: Any
    """int32 [n s r]; see `Row.bare_last`."""


class PatchChunks(NamedTuple):
    """n chunks of one shape: bins of p patches for s devices, m each; fields as in `VLBatch`."""

    patches: Any
    """float32 [n s m p d]"""
    patch_segment: Any
    """int32 [n s m p]"""
    patch_position: Any
    """int32 [n s m p 2]"""


class Chunks(NamedTuple):
    """A batch in chunks. Every device holds an equal share of each, and its rows' pictures.

    The visual tokens of a device are those of its bins, shape by shape and chunk by chunk.
    """

    texts: tuple[TextChunks, ...]
    pictures: tuple[PatchChunks, ...]
    visual_tokens: Any
    """[s v d] where they are known without the vision tower, else None."""
    place: Any
    """int32 [b]; where row i of the batch stands among all rows of all chunks."""


class Plan(NamedTuple):
    """Shapes of a batch: one program."""

    text: tuple[Shape, ...]
    """Rows of all devices."""
    bins: tuple[Shape, ...]
    """Bins of one device."""
    visual: int
    """Visual tokens of one device, where they are known without the vision tower."""


class _Dealt(NamedTuple):
    """Rows in the slots of a plan's text shapes."""

    slot: np.ndarray
    """int [b]; of each row."""
    share: np.ndarray
    """int [b]; device of each row."""


class _Misfit(Exception):
    """A batch is longer here or there than a plan has room for."""


@dataclass(frozen=True)
class Chunker:
    """Rows to `Chunks`, by the first of a few plans that has room for them."""

    plans: tuple[Plan, ...]
    shares: int
    tokenizer: Tokenizer
    image: ImageConfig

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
    ) -> Chunker:
        """Plans for batches like some samples.

        The first plan has room for most batches (two standard deviations more than the mean), the
        second for nearly all (six), the last for any: programs are compiled when first needed,
        and there are never more than three.

        Args:
            samples: rows of some batches.
            tokenizer: for `collate`.
            image: patch geometry and the capacity of a bin.
            text: whose last bucket is the longest row there may be.
            tokens: places of a chunk on each device, those of pictures and padding included.
            shares: devices that divide the rows of a batch.
        """
        budget = Budget(tokens, shares, text.buckets[-1])
        patches = Budget(tokens * image.merge_size**2, 1, image.bin_patches)
        lengths = [_lengths(rows) for rows in samples]
        most = max(len(x) for x in lengths)
        everything = budget.shape(text.buckets[-1], most)
        own = everything.slots // shares
        full_bins = patches.shape(image.bin_patches, own)
        per_row = image.bin_patches // image.merge_size**2
        cached = any(_is_cached(rows) for rows in samples)
        last = Plan((everything,), () if cached else (full_bins,), own * per_row * cached)
        plans = []
        for deviations in (2.0, 6.0):
            longest = None if deviations < 6 else text.buckets[-1]
            profile = cover(lengths, deviations, independent=True, longest=longest)
            rough = Plan(divide(profile, budget), (), 0)
            chosen = [rough if fits(x, rough.text) else last for x in lengths]
            dealt = [_deal(rows, p.text, shares) for rows, p in zip(samples, chosen, strict=True)]
            if cached:
                totals = [
                    _per_share(rows, d, shares) for rows, d in zip(samples, dealt, strict=True)
                ]
                plans.append(rough._replace(visual=_room(np.concatenate(totals), deviations)))
                continue
            fills = [
                _bins_of_share(rows, d, share, image.bin_patches)[1]
                for rows, d in zip(samples, dealt, strict=True)
                for share in range(shares)
            ]
            longest = None if longest is None else image.bin_patches
            profile = cover(fills, deviations, independent=False, longest=longest)
            plans.append(rough._replace(bins=divide(profile, patches)))
        return cls((*plans, last), shares, tokenizer, image)

    def __call__(self, rows: Sequence[Row]) -> Chunks:
        """The chunks of a batch.

        Raises:
            CatalogueError: a row is longer than any text bucket.
        """
        lengths = _lengths(rows)
        longest = self.plans[-1].text[0].length
        if lengths[0] > longest:
            raise CatalogueError(
                f"a row of {lengths[0]} tokens, those of its pictures included, exceeds the "
                f"largest text bucket {longest}; add a bucket to text.buckets, or lower "
                "text.max_title_tokens, text.max_attribute_tokens or image.max_pixels"
            )
        for plan in self.plans:
            if fits(lengths, plan.text):
                try:
                    return self._fill(rows, plan)
                except _Misfit:
                    continue
        raise CatalogueError(
            f"a batch of {len(rows)} rows is larger than those that the chunks were planned for"
        )

    def _fill(self, rows: Sequence[Row], plan: Plan) -> Chunks:
        dealt = _deal(rows, plan.text, self.shares)
        start = np.zeros(sum(x.slots for x in plan.text), np.int32)
        pictures, tokens = (), None
        if plan.visual:
            tokens = self._known_tokens(rows, dealt, plan.visual, start)
        elif plan.bins:
            pictures = self._pack(rows, dealt, plan.bins, start)
        elif any(row.pictures for row in rows):
            raise _Misfit
        texts, base = [], 0
        at_slot: list[Row | None] = [None] * len(start)
        for row, slot in zip(rows, dealt.slot, strict=True):
            at_slot[slot] = row
        for shape in plan.text:
            own = slice(base, base + shape.slots)
            texts.append(self._text(at_slot[own], start[own], shape))
            base = own.stop
        return Chunks(tuple(texts), pictures, tokens, dealt.slot.astype(np.int32))

    def _text(self, rows: Sequence[Row | None], start: np.ndarray, shape: Shape) -> TextChunks:
        empty = Row([self.tokenizer.pad_id])
        filled = [empty if row is None else row for row in rows]
        flat = collate(filled, self.tokenizer, self.image, shape.length, with_patches=False)
        lead = (shape.count, self.shares, shape.rows // self.shares)
        fields = (flat.tokens, flat.token_mask, flat.positions, start)
        bare = np.array([row.bare_last for row in filled], np.int32)
        return TextChunks(*(x.reshape(*lead, *x.shape[1:]) for x in (*fields, bare)))

    def _pack(
        self, rows: Sequence[Row], dealt: _Dealt, shapes: tuple[Shape, ...], start: np.ndarray
    ) -> tuple[PatchChunks, ...]:
        """Bins of all devices; writes into `start` where each slot's visual tokens begin."""
        config, merged = self.image, self.image.merge_size**2
        chunks = [_empty_bins(x, self.shares, config.patch_dim) for x in shapes]
        # Where slot b of a device's bins is, and how many of its visual tokens come before.
        where = [(k, n, m) for k, x in enumerate(shapes) for n in range(x.count)
                 for m in range(x.rows)]  # fmt: skip
        before = np.cumsum([0, *(shapes[k].length // merged for k, _, _ in where)])
        for share in range(self.shares):
            bins, fills = _bins_of_share(rows, dealt, share, config.bin_patches)
            if not fits(fills, shapes):
                raise _Misfit
            for slot, numbers in enumerate(bins):
                k, n, m = where[slot]
                target = [field[n, share, m] for field in chunks[k]]
                offset = inside = 0
                for number in numbers:
                    start[dealt.slot[number]] = before[slot] + offset // merged
                    for picture in rows[number].pictures:
                        inside += 1
                        own = slice(offset, offset + len(picture.pixels))
                        target[0][own], target[2][own] = picture.pixels, picture.position
                        target[1][own] = inside
                        offset = own.stop
        return tuple(chunks)

    def _known_tokens(
        self, rows: Sequence[Row], dealt: _Dealt, room: int, start: np.ndarray
    ) -> np.ndarray:
        known = [x.tokens for row in rows for x in row.pictures if x.tokens is not None]
        width, dtype = (known[0].shape[1], known[0].dtype) if known else (0, np.float32)
        if not known:
            raise _Misfit
        out = np.zeros((self.shares, room, width), dtype)
        used = [0] * self.shares
        for number, row in enumerate(rows):
            share, found = dealt.share[number], visual_tokens(row)
            start[dealt.slot[number]] = used[share]
            end = used[share] + len(found)
            if end > room:
                raise _Misfit
            if len(found):
                out[share, used[share] : end] = found
            used[share] = end
        return out


def padding_counts(rows: Any) -> dict[str, tuple[int, int]]:
    """Padded and all places of a batch on the host, by kind: `text` and, if there are, `patch`.

    Args:
        rows: a `VLBatch` or `Chunks`; of those without a vision tower to run, text alone counts.
    """
    chunked = isinstance(rows, Chunks)
    texts = rows.texts if chunked else (rows,)
    pictures = rows.pictures if chunked else (rows,)
    places = sum(x.token_mask.size for x in texts)
    used = sum(int(x.token_mask.sum()) for x in texts)
    if chunked:
        slots = sum(x.visual_start.size for x in texts)
        used -= slots - len(rows.place)  # The one visible place of each empty row.
    found = {"text": (places - used, places)}
    patches = sum(x.patch_segment.size for x in pictures)
    if patches:
        filled = sum(int((x.patch_segment > 0).sum()) for x in pictures)
        found["patch"] = (patches - filled, patches)
    return found


def _lengths(rows: Sequence[Row]) -> np.ndarray:
    return np.sort([len(row.tokens) for row in rows])[::-1]


def _is_cached(rows: Sequence[Row]) -> bool:
    return any(x.tokens is not None for row in rows for x in row.pictures)


def _deal(rows: Sequence[Row], shapes: Sequence[Shape], shares: int) -> _Dealt:
    """Longest rows to the longest slots; in each chunk the patches are spread over the devices."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    patches = [picture_patches(row) for row in rows]
    slot, share = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    totals, taken, base = [0] * shares, 0, 0
    for shape in shapes:
        room = shape.rows // shares
        for _ in range(shape.count):
            chunk = order[taken : taken + shape.rows]
            taken += len(chunk)
            used = [0] * shares
            for number in sorted(chunk, key=lambda i: -patches[i]):
                chosen = min((d for d in range(shares) if used[d] < room), key=totals.__getitem__)
                slot[number] = base + chosen * room + used[chosen]
                share[number] = chosen
                used[chosen] += 1
                totals[chosen] += patches[number]
            base += shape.rows
    return _Dealt(slot, share)


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


def _room(totals: np.ndarray, deviations: float) -> int:
    spread = totals.std(ddof=1) if len(totals) > 1 else 0.0
    return max(1, int(np.ceil(totals.mean() + deviations * spread)))


def _empty_bins(shape: Shape, shares: int, width: int) -> PatchChunks:
    lead = (shape.count, shares, shape.rows, shape.length)
    return PatchChunks(
        np.zeros((*lead, width), np.float32),
        np.zeros(lead, np.int32),
        np.zeros((*lead, 2), np.int32),
    )
