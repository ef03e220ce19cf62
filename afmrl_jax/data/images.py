"""Pictures to patches, in the order and with the numbers of Qwen2-VL's image processor."""

from __future__ import annotations

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from afmrl_jax.errors import CatalogueError
from afmrl_jax.model_config import ImageConfig

MAX_SIDE = 20_000
"""Pixels; a larger side is refused before anything is decoded."""
MAX_PIXELS = 100_000_000
MAX_ASPECT = 200


class Patches(NamedTuple):
    """A picture as patches, merge-block by merge-block."""

    pixels: np.ndarray
    """float32 [p d]; d = channels * frames * side * side"""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    position: np.ndarray
    """int32 [p 2]; (row, column) of each patch"""
    tokens: np.ndarray | None = None
    """[p/merge^2 d]; visual tokens, where they are known; the pixels then have d = 0."""


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Nearest size with sides that `factor` divides and an area within bounds.

    Raises:
        CatalogueError: aspect ratio above 200.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise CatalogueError(
            f"the picture is {width} x {height} pixels, longer than {MAX_ASPECT} to 1; crop it"
        )
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


def open_picture(data: bytes) -> Image.Image:
    """An undecoded picture whose size is bearable.

    Raises:
        CatalogueError: not a picture, or too large a one.
    """
    try:
        with warnings.catch_warnings():
            # The size is checked below, with a clearer message than Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise CatalogueError(
            f"the picture is too large, more than {MAX_PIXELS // 10**6} megapixels; scale it down"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise CatalogueError(
            "the picture cannot be read (not a JPEG, PNG or other known format, or broken); "
            "replace the file"
        ) from error
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise CatalogueError(
            f"the picture is {width} x {height} pixels, more than {MAX_SIDE} a side or "
            f"{MAX_PIXELS // 10**6} megapixels; scale it down"
        )
    return picture


def decode(data: bytes) -> Image.Image:
    """An RGB picture; transparent ones are laid on white.

    Raises:
        CatalogueError: it cannot be decoded.
    """
    picture = open_picture(data)
    try:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(
                "RGB"
            )
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise CatalogueError(
            f"the picture is broken or cut off ({error}); replace the file"
        ) from error


def patchify(data: bytes, config: ImageConfig) -> Patches:
    """Decode, resize (bicubic), normalise and cut into patches.

    Raises:
        CatalogueError: the picture cannot be used.
    """
    picture = decode(data)
    factor = config.patch_size * config.merge_size
    rows, columns = smart_resize(
        picture.height, picture.width, factor, config.min_pixels, config.max_pixels
    )
    limit = config.max_patches * config.patch_size**2
    if rows * columns > limit:
        # A very long picture keeps one merged row, and its length is cut to the patch budget.
        longest = limit // factor // factor * factor
        rows, columns = min(rows, longest), min(columns, longest)
    resized = picture.resize((columns, rows), Image.Resampling.BICUBIC)
    # The order of operations is the reference's, so that floats agree to the last bit.
    pixels: np.ndarray = (np.asarray(resized, np.float64) * (1 / 255)).astype(np.float32)
    pixels = (pixels - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)
    return _cut(pixels, config)


def _cut(pixels: np.ndarray, config: ImageConfig) -> Patches:
    side, merge, frames = config.patch_size, config.merge_size, config.temporal_patch_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    # -> block row, block column, row in block, column in block, channel, y, x
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, side, side)
    patches = np.repeat(blocks, frames, axis=2).reshape(rows * columns, -1)
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    place = place.reshape(rows // merge, merge, columns // merge, merge, 2)
    position = place.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
    return Patches(np.ascontiguousarray(patches, np.float32), (rows, columns), position)


def erase_patches(
    picture: Patches, rng: np.random.Generator, rate: float, config: ImageConfig
) -> Patches:
    """The picture with some visual tokens erased, each with chance `rate`.

    Erased pixels get the mean colour (0 after normalisation), as in random erasing (Zhong et al.
    2020); all patches that the merger joins into one visual token go together.
    """
    merged = config.merge_size**2
    keep = np.repeat(rng.random(len(picture.pixels) // merged) >= rate, merged)
    return picture._replace(pixels=picture.pixels * keep[:, None].astype(np.float32))
