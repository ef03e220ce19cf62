"""A large batch as arrays in chunks of a few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.chunk_shapes import Shape
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.images import Normalization
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.types import AnyArray, Bool, Int, Real


class TextChunks(NamedTuple):
    """n chunks of one shape: rows of text for s devices, r each, of t positions."""

    tokens: Int[AnyArray, "n s r t"]
    token_mask: Bool[AnyArray, "n s r t"]
    """In an empty row only the first position, so that no softmax is empty."""
    positions: Int[AnyArray, "n s r 3 t"]
    visual_start: Int[AnyArray, "n s r"]
    """Counted over all visual tokens of the row's device."""
    bare_last: Int[AnyArray, "n s r"]
    """See `Row.bare_last`."""
    used: Int[AnyArray, ""]
    """How many chunks hold rows: the first ones. The others need not be computed."""


class PatchChunks(NamedTuple):
    """n chunks of one shape: bins of p patches for s devices, m each; fields as in `VLBatch`."""

    patches: Real[AnyArray, "n s m p d"]
    patch_segment: Int[AnyArray, "n s m p"]
    patch_position: Int[AnyArray, "n s m p 2"]
    used: Int[AnyArray, ""]
    """As in `TextChunks`."""
    normalization: Normalization | None = None
    """Fields [n s m ...]."""


class Chunks(NamedTuple):
    """A batch in chunks. Every device holds an equal share of each chunk, and its rows' pictures.

    The visual tokens of a device are those of its bins, shape by shape and chunk by chunk.
    """

    texts: tuple[TextChunks, ...]
    pictures: tuple[PatchChunks, ...]
    visual: VisualFeatures | None
    """Arrays [s v d], if they are known without the vision tower."""
    place: Int[AnyArray, " b"]
    """Where row i of the batch is among all rows of all chunks."""


def empty_bins(shape: Shape, shares: int, config: ImageConfig, used: int) -> PatchChunks:
    """Bins of one shape without pictures.

    Args:
        shape: number of chunks, bins per chunk and device, patches per bin.
        shares: number of devices.
        config: patch geometry and colors.
        used: number of chunks that will hold pictures.
    """
    lead = (shape.chunks, shares, shape.rows, shape.length)
    return PatchChunks(
        np.zeros((*lead, config.patch_bytes), np.uint8),
        np.zeros(lead, np.int32),
        np.zeros((*lead, 2), np.int32),
        np.int32(used),
        Normalization.empty(lead, config),
    )


def fill_bin(
    chunks: PatchChunks, place: tuple[int, int, int], rows: Sequence[Row], *, with_pixels: bool
) -> None:
    """Put the pictures of some rows into a bin, one after the other.

    Args:
        chunks: written to.
        place: chunk, device and bin.
        rows: their pictures fit into the bin.
        with_pixels: False if the bin is on another process's devices: its pictures are not
            decoded, and only segments and positions are written.
    """
    offset = 0
    assert chunks.normalization is not None
    for inside, picture in enumerate((p for row in rows for p in row.pictures), 1):
        own = slice(offset, offset + len(picture.pixels))
        if with_pixels:
            chunks.patches[place][own] = picture.pixels
        chunks.patch_segment[place][own] = inside
        chunks.patch_position[place][own] = picture.position
        kept = chunks.normalization.kept[place]
        kept[own] = True if picture.kept is None else picture.kept
        offset = own.stop
