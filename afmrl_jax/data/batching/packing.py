"""Pictures of a batch in bins of one size, so that small ones are not padded to large ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.images import Normalization, Patches
from afmrl_jax.errors import CatalogueError


class Bins(NamedTuple):
    """The pictures of a batch; p is the patch budget of one bin."""

    patches: np.ndarray
    """uint8 [n p d]"""
    segment: np.ndarray
    """int32 [n p]; number of the picture inside its bin, from 1; 0 is padding."""
    position: np.ndarray
    """int32 [n p 2]; (row, column) of each patch in its picture."""
    normalization: Normalization
    """Of the patches."""
    visual_start: np.ndarray
    """int32 [b]; where a row's visual tokens start among the n * p / merge_size^2 of all bins."""


def first_fit_decreasing(sizes: Sequence[int], capacity: int) -> tuple[list[tuple[int, int]], int]:
    """Bin and offset of each item, and how many bins that takes.

    Largest items first, each into the first bin with room; equal ones keep their order, so that
    item i is in bin i if every item fills a bin. An item of size 0 takes no bin and gets (0, 0).

    Example:
        >>> first_fit_decreasing([3, 8, 5], 8)
        ([(1, 5), (0, 0), (1, 0)], 2)

    Args:
        sizes: none above `capacity`.
        capacity: of every bin.
    """
    places = [(0, 0)] * len(sizes)
    filled: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        size = sizes[number]
        if not size:
            break
        chosen = next((b for b, used in enumerate(filled) if used + size <= capacity), len(filled))
        if chosen == len(filled):
            filled.append(0)
        places[number] = (chosen, filled[chosen])
        filled[chosen] += size
    return places, len(filled)


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Items of each bin, largest items first, each into the fullest bin that still has room.

    The cost depends only on the number of items and the capacity, which matters with thousands of
    bins. An item of size 0 takes no bin.

    Example:
        >>> best_fit_decreasing([3, 8, 5, 0, 2], 8)
        [[1], [2, 0], [4]]

    Args:
        sizes: none above `capacity`.
        capacity: of every bin.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        size = sizes[number]
        if not size:
            break
        room = next((r for r in range(size, capacity + 1) if with_room[r]), None)
        if room is None:
            bins.append([])
            chosen, room = len(bins) - 1, capacity
        else:
            chosen = with_room[room].pop()
        bins[chosen].append(number)
        with_room[room - size].append(chosen)
    return bins


def bin_count(needed: int, rows: int, shares: Sequence[float]) -> int:
    """The smallest sufficient number of bins among those allowed by `shares` of `ImageConfig`.

    Example:
        >>> [bin_count(needed, 10, (0.25, 0.5, 1.0)) for needed in (0, 3, 4, 6)]
        [3, 3, 5, 10]
    """
    sizes = (math.ceil(share * rows) for share in shares)
    return next(size for size in sizes if size >= needed)


def pack(
    rows: Sequence[tuple[Patches, ...]], config: ImageConfig, host: HostShare | None = None
) -> Bins:
    """Put the pictures of each row side by side into one bin.

    Args:
        rows: pictures of each row, b of them; a row may have none.
        config: patch geometry, size and allowed numbers of bins.
        host: only this process's bins get their pixels; None fills all.

    Raises:
        CatalogueError: a row's pictures do not fit into a bin.
    """
    capacity, merged = config.bin_patches, config.merge_size**2
    sizes = [sum(len(picture.pixels) for picture in pictures) for pictures in rows]
    for number, size in enumerate(sizes):
        if size > capacity:
            raise CatalogueError(
                f"row {number} holds {len(rows[number])} pictures of {size} patches, but there is "
                f"room for {capacity}; raise image.max_pictures, or lower image.max_pixels"
            )
    places, needed = first_fit_decreasing(sizes, capacity)
    count = bin_count(needed, len(rows), config.pack_shares)
    patches = np.zeros((count, capacity, config.patch_bytes), np.uint8)
    normalization = Normalization.empty((count, capacity), config)
    segment = np.zeros((count, capacity), np.int32)
    position = np.zeros((count, capacity, 2), np.int32)
    inside = [0] * count
    needed_here = (host or HostShare()).needs(count)
    # By offset, so that the pictures of a bin are numbered from its start.
    for number in sorted(range(len(rows)), key=lambda n: places[n]):
        chosen, offset = places[number]
        for picture in rows[number]:
            inside[chosen] += 1
            own = slice(offset, offset + len(picture.pixels))
            if needed_here[chosen]:
                patches[chosen, own] = picture.pixels
            segment[chosen, own] = inside[chosen]
            position[chosen, own] = picture.position
            normalization.kept[chosen, own] = True if picture.kept is None else picture.kept
            offset = own.stop
    start = [(chosen * capacity + offset) // merged for chosen, offset in places]
    return Bins(patches, segment, position, normalization, np.array(start, np.int32))
