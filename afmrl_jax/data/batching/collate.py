"""Rows to batches of fixed shape: M-RoPE positions, padding, bins of patches (NumPy only)."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.images import Normalization, Patches, patchify, undecoded
from afmrl_jax.data.batching.packing import pack
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import AnyArray, Bool, Int, Real


class VLBatch(NamedTuple):
    """Rows of text padded on one side, and their pictures packed in bins of p patches.

    Bins are not rows: a row finds its visual tokens by `visual_start`. Fields are NumPy arrays on
    the host and JAX arrays on a device.
    """

    tokens: Int[AnyArray, "b t"]
    token_mask: Bool[AnyArray, "b t"]
    """False is padding."""
    positions: Int[AnyArray, "b 3 t"]
    """M-RoPE positions (time, row, column), 0 for padding."""
    patches: Real[AnyArray, "n p d"] | None
    """Bytes, d = channels * side * side, or without a `normalization` the normalised numbers of all
    frames, d = channels * frames * side * side. None, like the next two fields, where rows are
    processed without the bins."""
    patch_segment: Int[AnyArray, "n p"] | None
    """Number of the picture inside the bin, from 1; 0 is padding."""
    patch_position: Int[AnyArray, "n p 2"] | None
    """(row, column) in patches, merge-block order."""
    visual_start: Int[AnyArray, " b"]
    """The j-th picture position of a row takes visual token visual_start + j, counted over the
    n * p / merge_size^2 tokens of all bins."""
    normalization: Normalization | None = None
    """Of the patches, if they are bytes."""
    visual: VisualFeatures | None = None
    """If they are known without the vision tower, which then gets no patches."""


@dataclass(frozen=True)
class Row:
    """One sequence before padding."""

    tokens: list[int]
    pictures: tuple[Patches, ...] = ()
    """In the order of their positions among the tokens."""
    bare_length: int | None = None
    """How many tokens the row would have without its attributes; None if it has none."""

    @property
    def bare_last(self) -> int:
        """Index of the last token before the attributes, or of the last token."""
        return (len(self.tokens) if self.bare_length is None else self.bare_length) - 1


class PatchStore:
    """Patches of listings' pictures, decoded once as long as they fit in memory.

    Args:
        listings: the listings whose pictures are read.
        config: patch geometry.
        max_bytes: most memory for the pictures that are kept.
        deferred: pictures come `Undecoded`, for a process that needs only some of a batch. Not all
            processes then know whether a picture can be decoded, so bad ones are fatal.
    """

    def __init__(
        self,
        listings: Sequence[Listing],
        config: ImageConfig,
        max_bytes: int = 1 << 29,
        *,
        deferred: bool = False,
    ):
        self._listings = listings
        self.config = config
        self._deferred = deferred and config.bad_pictures == "fatal"
        self._kept: OrderedDict[tuple[int, int], Patches] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bad: set[tuple[int, int]] = set()

    def bad(self, indices: Iterable[int]) -> int:
        """How many of some listings' pictures were found to be undecodable."""
        counts = Counter(index for index, _ in list(self._bad))
        return sum(counts[int(i)] for i in indices)

    def __getstate__(self) -> dict[str, object]:
        """Worker processes get an empty store: pictures are cheaper to decode than to send."""
        state = self.__dict__.copy()
        state.update(_kept=OrderedDict(), _bytes=0, _lock=None)
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def at(self, index: int, place: int) -> Patches | None:
        """Patches of a picture of listing number `index`; the most recently used ones are kept.

        None for a picture that cannot be decoded, if such pictures are left out.

        Args:
            index: number of the listing.
            place: of the picture in it, below the number of its pictures.

        Raises:
            CatalogueError: it cannot be decoded, if that is fatal.
        """
        key = (index, place)
        with self._lock:
            if key in self._bad:
                return None
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        listing = self._listings[index]
        try:
            with listing.encoded(place) as data:
                if self._deferred:
                    return undecoded(data, self.config, partial(self._pixels, key, data))
                patches = patchify(data, self.config)
        except CatalogueError as error:
            if self.config.bad_pictures == "fatal":
                raise _unusable(listing, error) from error
            with self._lock:
                self._bad.add(key)
            log_info(f"left out: the picture of listing {listing.listing_id!r}: {error}")
            return None
        self._keep(key, patches)
        return patches

    def count(self, index: int) -> int:
        """How many pictures a row shows of listing number `index`."""
        most = self.config.max_pictures
        # Where one is shown, a store need not be asked how many there are.
        return 1 if most == 1 else min(len(self._listings[index].pictures), most)

    def _pixels(self, key: tuple[int, int], data: bytes) -> np.ndarray:
        """Pixels of a picture that came undecoded, from the bytes of its file."""
        try:
            patches = patchify(data, self.config)
        except CatalogueError as error:
            raise _unusable(self._listings[key[0]], error) from error
        self._keep(key, patches)
        return patches.pixels

    def _keep(self, key: tuple[int, int], patches: Patches) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = patches
                self._bytes += patches.pixels.nbytes
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.pixels.nbytes


def _unusable(listing: Listing, error: CatalogueError) -> CatalogueError:
    return CatalogueError(
        f"listing {listing.listing_id!r}: {error} (--image.bad-pictures skip leaves such pictures "
        "out)"
    )


def picture_patches(row: Row) -> int:
    """Patches of all pictures of a row."""
    return sum(len(picture.pixels) for picture in row.pictures)


def visual_tokens(row: Row) -> np.ndarray:
    """Known visual tokens of a row's pictures, [s d]; s = 0 for a row without pictures."""
    found = [picture.tokens for picture in row.pictures if picture.tokens is not None]
    if not found:
        return np.zeros((0, 0), np.float32)
    return found[0] if len(found) == 1 else np.concatenate(found)


def merged_grid(picture: Patches, config: ImageConfig) -> tuple[int, int]:
    """Rows and columns of visual tokens that a picture takes up in a sequence."""
    return picture.grid[0] // config.merge_size, picture.grid[1] // config.merge_size


def mrope_positions(
    tokens: Sequence[int], grids: Sequence[tuple[int, int]], image_pad_id: int
) -> np.ndarray:
    """Positions int32 (3, t) of one row with any number of pictures.

    Text counts up in all three axes. A picture block that starts at position p has time p, row
    p + r and column p + c; the text after it continues from the largest of them plus one
    (Qwen2-VL, section 2.1).

    Args:
        tokens: the row, with a run of `image_pad_id` for each picture.
        grids: merged rows and columns of the pictures, in order.
        image_pad_id: token id of a picture position.

    Raises:
        ValueError: picture positions and grids do not match.
    """
    ids = np.asarray(tokens)
    pads = np.flatnonzero(ids == image_pad_id)
    if len(pads) != sum(rows * columns for rows, columns in grids):
        raise ValueError(f"a row has {len(pads)} picture tokens for pictures of sizes {[*grids]}")
    out = np.empty((3, len(ids)), np.int32)
    place = position = used = 0
    for rows, columns in grids:
        start, count = int(pads[used]), rows * columns
        if pads[used + count - 1] != start + count - 1:
            raise ValueError("the tokens of a picture must be consecutive")
        out[:, place:start] = position + np.arange(start - place)
        position += start - place
        out[0, start : start + count] = position
        out[1, start : start + count] = position + np.repeat(np.arange(rows), columns)
        out[2, start : start + count] = position + np.tile(np.arange(columns), rows)
        place, used, position = start + count, used + count, position + max(rows, columns)
    out[:, place:] = position + np.arange(len(ids) - place)
    return out


def bucket_length(longest: int, budget: TextBudget) -> int:
    """The smallest bucket that holds `longest` tokens.

    Raises:
        CatalogueError: none does.
    """
    for size in budget.buckets:
        if longest <= size:
            return size
    raise CatalogueError(
        f"a row of {longest} tokens, those of its pictures included, exceeds the largest text "
        f"bucket {budget.buckets[-1]}; add a bucket to text.buckets, or lower "
        "text.max_title_tokens, text.max_attribute_tokens, image.max_pixels or image.max_pictures"
    )


def collate(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    config: ImageConfig,
    length: int,
    *,
    with_patches: bool = True,
    side: Literal["right", "left"] = "right",
    host: HostShare | None = None,
) -> VLBatch:
    """Pad rows to `length` tokens, and pack their pictures in bins.

    Args:
        rows: sequences no longer than `length`.
        tokenizer: for the ids of padding and of picture positions.
        config: patch geometry and bins.
        length: tokens per row, usually from `bucket_length`.
        with_patches: False leaves the patch arrays empty (n = 0), for callers that hold visual
            tokens and set `visual_start` themselves.
        side: the side that is padded.
        host: the process whose pictures are filled in; None for all pictures.

    Raises:
        CatalogueError: a row is longer than `length`, or its pictures do not fit into a bin.
    """
    size = len(rows)
    tokens = np.full((size, length), tokenizer.pad_id, np.int32)
    mask = np.zeros((size, length), bool)
    positions = np.zeros((size, 3, length), np.int32)
    for number, row in enumerate(rows):
        count = len(row.tokens)
        if count > length:
            raise CatalogueError(
                f"row {number} of a batch has {count} tokens, but the batch has room for {length}; "
                "lower text.max_title_tokens, text.max_attribute_tokens, image.max_pixels or "
                "image.max_pictures, or choose a longer bucket of text.buckets"
            )
        own = slice(0, count) if side == "right" else slice(length - count, length)
        tokens[number, own] = row.tokens
        mask[number, own] = True
        grids = [merged_grid(picture, config) for picture in row.pictures]
        positions[number, :, own] = mrope_positions(row.tokens, grids, tokenizer.image_pad_id)
    known = [visual_tokens(row) for row in rows] if with_patches else []
    if any(len(x) for x in known):
        with_patches = False
    if with_patches:
        bins = pack([row.pictures for row in rows], config, host)
        patches, segment, position, normalization, start = bins
        return VLBatch(tokens, mask, positions, patches, segment, position, start, normalization)
    blind = VLBatch(
        tokens,
        mask,
        positions,
        patches=np.zeros((0, 0, config.patch_bytes), np.uint8),
        patch_segment=np.zeros((0, 0), np.int32),
        patch_position=np.zeros((0, 0, 2), np.int32),
        visual_start=np.zeros(size, np.int32),
    )
    return _with_known(blind, known, config) if any(len(x) for x in known) else blind


def _with_known(batch: VLBatch, known: list[np.ndarray], config: ImageConfig) -> VLBatch:
    """A batch with visual tokens that need no vision tower, with equal room for every row."""
    room = config.bin_patches // config.merge_size**2
    example = next(x for x in known if len(x))
    tokens = np.zeros((len(known), room, example.shape[1]), example.dtype)
    for number, found in enumerate(known):
        if len(found):
            tokens[number, : len(found)] = found
    start = np.arange(len(known), dtype=np.int32) * room
    return batch._replace(visual_start=start, visual=VisualFeatures(tokens))
