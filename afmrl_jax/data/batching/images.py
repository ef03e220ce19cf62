"""Pictures to patches of bytes, in the order of Qwen2-VL's image processor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.catalogue.pictures import OpenedPicture, open_picture
from afmrl_jax.types import AnyArray, Bool, Float, UInt8


@dataclass(frozen=True)
class Undecoded:
    """Pixels of a picture that is decoded when they are needed, uint8 [p d]."""

    count: int
    """p"""
    load: Callable[[], np.ndarray]

    def __len__(self) -> int:
        return self.count

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        pixels = self.load()
        return pixels if dtype is None else pixels.astype(dtype)


class Patches(NamedTuple):
    """A picture as patches, merge-block by merge-block."""

    pixels: UInt8[AnyArray, "p d"]
    """d = channels * side * side: one frame, which the device repeats. `Undecoded` if that is left
    to the process that needs them."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    position: np.ndarray
    """int32 [p 2]; (row, column) of each patch"""
    tokens: np.ndarray | None = None
    """[p/merge^2 d]; visual tokens, if they are known; the pixels then have d = 0."""
    kept: np.ndarray | None = None
    """bool [p]; False erases a patch. None keeps all."""


class Normalization(NamedTuple):
    """How the bytes of n bins of patches become numbers: (byte / 255 - mean) / std, or 0.

    It travels with the bytes, because the device computes it: bytes are a quarter of the numbers,
    or an eighth where a patch has two frames.
    """

    mean: Float[AnyArray, "n c"]
    """Of each color channel, the same in all bins."""
    std: Float[AnyArray, "n c"]
    kept: Bool[AnyArray, "n p"]
    """False becomes 0, the mean color: erased patches and padding."""

    @classmethod
    def empty(cls, lead: tuple[int, ...], config: ImageConfig) -> Normalization:
        """Of bins without pictures, [*lead c] and [*lead]; `lead` ends with p."""
        mean, std = (np.array(x, np.float32) for x in (config.mean, config.std))
        shape = (*lead[:-1], len(mean))
        return cls(
            np.broadcast_to(mean, shape).copy(),
            np.broadcast_to(std, shape).copy(),
            np.zeros(lead, bool),
        )


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The nearest size whose sides `factor` divides and whose area is within bounds."""
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def patchify(data: bytes, config: ImageConfig) -> Patches:
    """Decode, resize (bicubic) and cut into patches.

    Raises:
        CatalogueError: the picture cannot be used.
    """
    opened = open_picture(data)
    rows, columns = _size(opened, config)
    resized = opened.decode((columns, rows), scaled=config.scaled_decoding)
    return cut(np.asarray(resized), config)


def _size(picture: OpenedPicture, config: ImageConfig) -> tuple[int, int]:
    """Rows and columns of pixels that a picture is resized to."""
    factor = config.patch_size * config.merge_size
    width, height = picture.size
    rows, columns = smart_resize(height, width, factor, config.min_pixels, config.max_pixels)
    limit = config.max_patches * config.patch_size**2
    if rows * columns > limit:
        # A very long picture keeps one merged row; its length is cut to the patch budget.
        longest = limit // factor // factor * factor
        rows, columns = min(rows, longest), min(columns, longest)
    return rows, columns


def undecoded(data: bytes, config: ImageConfig, load: Callable[[], np.ndarray]) -> Patches:
    """A picture of which only the header was read.

    Args:
        data: bytes of the picture's file.
        config: as for `patchify`.
        load: returns the pixels of `patchify`.
    """
    rows, columns = (x // config.patch_size for x in _size(open_picture(data), config))
    pixels = Undecoded(rows * columns, load)
    return Patches(pixels, (rows, columns), _positions(rows, columns, config.merge_size))


def _positions(rows: int, columns: int, merge: int) -> np.ndarray:
    """(row, column) of each patch, merge-block by merge-block, int32 [p 2]."""
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    place = place.reshape(rows // merge, merge, columns // merge, merge, 2)
    return place.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)


def cut(pixels: UInt8[np.ndarray, "y x c"], config: ImageConfig) -> Patches:
    """Patches of a picture whose sides are whole merged patches."""
    side, merge = config.patch_size, config.merge_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, -1)
    # -> block row, block column, row in block, column in block, channel, y, x
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
    return Patches(patches, (rows, columns), _positions(rows, columns, merge))


def erase_patches(
    picture: Patches, rng: np.random.Generator, rate: float, config: ImageConfig
) -> Patches:
    """The picture with some visual tokens erased, each with chance `rate`.

    Erased pixels get the mean color (0 after normalization), as in random erasing (Zhong et al.
    2020); all patches that the merger joins into one visual token are erased together.
    """
    merged = config.merge_size**2
    kept = rng.random(len(picture.pixels) // merged) >= rate
    return picture._replace(kept=np.repeat(kept, merged))
