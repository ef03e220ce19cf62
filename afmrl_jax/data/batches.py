"""From listings to model rows: prompts, M-RoPE positions, batches of fixed shape (NumPy only).

The layout follows Qwen's chat format without its fixed words, which a vocabulary learned from a
catalogue does not know:

    embedder   <|im_start|><|vision_start|><|image_pad|>...<|vision_end|>title<|im_end|>
               attributes<|im_end|>
    generator  <|im_start|><|vision_start|><|image_pad|>...<|vision_end|>title<|im_end|><|im_start|>
               attributes<|im_end|>

The embedder's vector is the hidden state of the last `<|im_end|>`. A row without attributes ends
at the first: the decoder is causal, so that a row with attributes holds both vectors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from afmrl_jax.config import TextBudget
from afmrl_jax.data.images import Patches, patchify
from afmrl_jax.data.records import Listing
from afmrl_jax.data.text import Tokenizer
from afmrl_jax.errors import CatalogueError
from afmrl_jax.model_config import ImageConfig


class VLBatch(NamedTuple):
    """Rows of text with at most a few pictures each, padded on the right.

    Fields are NumPy arrays on the host and JAX arrays on a device.
    """

    tokens: Any
    """int32 [b t]"""
    token_mask: Any
    """bool [b t]; False is padding."""
    positions: Any
    """int32 [b 3 t]; M-RoPE positions (time, row, column)."""
    patches: Any
    """float32 [b p d]; normalised pixels, d = channels * frames * side * side."""
    patch_segment: Any
    """int32 [b p]; which picture of the row a patch belongs to, 0 is padding."""
    patch_position: Any
    """int32 [b p 2]; (row, column) in patches, merge-block order."""


@dataclass(frozen=True)
class Row:
    """One sequence before padding."""

    tokens: list[int]
    picture: Patches | None = None


class PatchStore:
    """Patches of each listing's picture, decoded once while they fit in memory."""

    def __init__(self, listings: Sequence[Listing], config: ImageConfig, max_bytes: int = 1 << 29):
        self._listings = listings
        self.config = config
        self._kept: OrderedDict[int, Patches] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes get an empty store: pictures are cheaper to decode than to send."""
        state = self.__dict__.copy()
        state.update(_kept=OrderedDict(), _bytes=0, _lock=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Patches:
        """Patches of listing number `index`, most recently used ones kept."""
        with self._lock:
            found = self._kept.get(index)
            if found is not None:
                self._kept.move_to_end(index)
                return found
        listing = self._listings[index]
        try:
            patches = patchify(listing.read_image_bytes(), self.config)
        except CatalogueError as error:
            raise CatalogueError(f"listing {listing.listing_id!r}: {error}") from error
        with self._lock:
            if index not in self._kept:
                self._kept[index] = patches
                self._bytes += patches.pixels.nbytes
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.pixels.nbytes
        return patches


def visual_token_count(picture: Patches | None, config: ImageConfig) -> int:
    """Merged visual tokens a picture takes in the sequence."""
    return 0 if picture is None else len(picture.pixels) // config.merge_size**2


def _opening(tokenizer: Tokenizer, picture: Patches | None, config: ImageConfig) -> list[int]:
    count = visual_token_count(picture, config)
    if not count:
        return [tokenizer.im_start_id]
    pads = [tokenizer.image_pad_id] * count
    return [
        tokenizer.im_start_id,
        tokenizer.vision_start_id,
        *pads,
        tokenizer.vision_end_id,
    ]


def embedder_row(
    tokenizer: Tokenizer,
    budget: TextBudget,
    config: ImageConfig,
    *,
    title: str | None,
    attributes: str | None,
    picture: Patches | None,
) -> Row:
    """The embedder's input for one listing; any of the three parts may be absent."""
    tokens = _opening(tokenizer, picture, config)
    if title:
        tokens += tokenizer.encode(title)[: budget.max_title_tokens]
    if attributes:
        tokens.append(tokenizer.eos_id)
        tokens += tokenizer.encode(attributes)[: budget.max_attribute_tokens]
    return Row([*tokens, tokenizer.eos_id], picture)


def generator_prompt(
    tokenizer: Tokenizer, budget: TextBudget, config: ImageConfig, *, title: str, picture: Patches
) -> Row:
    """The generator's prompt: picture and title, then the turn in which it writes."""
    tokens = _opening(tokenizer, picture, config)
    tokens += tokenizer.encode(title)[: budget.max_title_tokens]
    return Row([*tokens, tokenizer.eos_id, tokenizer.im_start_id], picture)


def completion_tokens(tokenizer: Tokenizer, attributes: str, budget: TextBudget) -> list[int]:
    """What the generator should write: the attribute text and the end of its turn."""
    return [*tokenizer.encode(attributes)[: budget.max_attribute_tokens - 1], tokenizer.eos_id]


def value_weights(tokenizer: Tokenizer, tokens: Sequence[int], structure: float) -> list[float]:
    """Weight of each token of an attribute list: 1 inside a value, `structure` elsewhere."""
    out, inside = [], False
    for token in tokens:
        text = tokenizer.decode([token])
        if ";" in text or token == tokenizer.eos_id:
            inside = False
        out.append(1.0 if inside else structure)
        if ":" in text:
            inside = True
    return out


def mrope_positions(
    tokens: Sequence[int], grid: tuple[int, int] | None, image_pad_id: int
) -> np.ndarray:
    """Positions (3, t) of one row with at most one picture of `grid` merged rows and columns.

    Text counts up in all three axes. A picture block that starts at position p has time p, row
    p + r and column p + c; the text behind it goes on from the largest of them plus one
    (Qwen2-VL, section 2.1).
    """
    ids = np.asarray(tokens)
    pads = np.flatnonzero(ids == image_pad_id)
    if grid is None or not len(pads):
        return np.broadcast_to(np.arange(len(ids), dtype=np.int32), (3, len(ids))).copy()
    start, (rows, columns) = int(pads[0]), grid
    out = np.empty((3, len(ids)), np.int32)
    out[:, :start] = np.arange(start)
    block = slice(start, start + rows * columns)
    out[0, block] = start
    out[1, block] = start + np.repeat(np.arange(rows), columns)
    out[2, block] = start + np.tile(np.arange(columns), rows)
    after = start + rows * columns
    out[:, after:] = start + max(rows, columns) + np.arange(len(ids) - after)
    return out


def bucket_length(longest: int, budget: TextBudget) -> int:
    """The smallest bucket that holds `longest` tokens."""
    for size in budget.buckets:
        if longest <= size:
            return size
    raise CatalogueError(
        f"a row of {longest} tokens exceeds the largest text bucket {budget.buckets[-1]}; "
        "lower max_title_tokens or max_attribute_tokens, or add a bucket"
    )


def collate(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    config: ImageConfig,
    length: int,
    *,
    with_patches: bool = True,
) -> VLBatch:
    """Pad rows on the right to `length` tokens and to the patch budget.

    Args:
        rows: sequences no longer than `length`.
        tokenizer: for the ids of padding and of the picture places.
        config: patch geometry.
        length: tokens per row, usually of `bucket_length`.
        with_patches: False leaves the patch arrays empty, for callers that hold visual tokens.
    """
    size, merge = len(rows), config.merge_size
    places = config.max_patches if with_patches else 0
    tokens = np.full((size, length), tokenizer.pad_id, np.int32)
    mask = np.zeros((size, length), bool)
    positions = np.zeros((size, 3, length), np.int32)
    patches = np.zeros((size, places, config.patch_dim), np.float32)
    segment = np.zeros((size, places), np.int32)
    patch_position = np.zeros((size, places, 2), np.int32)
    for number, row in enumerate(rows):
        count = len(row.tokens)
        tokens[number, :count] = row.tokens
        mask[number, :count] = True
        grid = None
        if row.picture is not None:
            grid = (row.picture.grid[0] // merge, row.picture.grid[1] // merge)
            if with_patches:
                used = len(row.picture.pixels)
                patches[number, :used] = row.picture.pixels
                segment[number, :used] = 1
                patch_position[number, :used] = row.picture.position
        positions[number, :, :count] = mrope_positions(row.tokens, grid, tokenizer.image_pad_id)
    return VLBatch(tokens, mask, positions, patches, segment, patch_position)
