"""Picture files: opened, checked and decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from afmrl_jax.errors import CatalogueError

MAX_SIDE = 20_000
"""Pixels; a larger side is refused before anything is decoded."""


MAX_PIXELS = 100_000_000


def open_picture(data: bytes) -> Image.Image:
    """An undecoded picture of acceptable size.

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
            "the picture cannot be read (broken, or not a JPEG, PNG or other known format); "
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
    """An RGB picture; transparent ones are placed on white.

    Raises:
        CatalogueError: it cannot be decoded.
    """
    return _decoded(open_picture(data))


def _decoded(picture: Image.Image) -> Image.Image:
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
