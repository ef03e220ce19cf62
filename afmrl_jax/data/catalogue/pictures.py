"""Picture files: opened, checked and decoded, here and nowhere else.

A picture comes from a stranger: only formats whose decoders run in this process are opened, sizes
are bounded before anything is decoded, and whatever a decoder raises becomes a `CatalogueError`.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.memory_budget import MemoryBudget

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow starts external programs for some others, such as Ghostscript for EPS."""

DECODING = 2
"""Number of the rules by which a file becomes pixels, for what is kept of pictures across versions.
Since 2, EXIF orientation is applied and 16 bits are scaled."""

MAX_SIDE = 20_000
"""Pixels; a larger side is refused before anything is decoded."""

MAX_PIXELS = 100_000_000
MAX_ASPECT = 200
"""Longer side to shorter side, as in Qwen2-VL's image processor."""

MAX_DECODING = 700_000_000
"""Bytes that all threads of a process together use to decode pictures, about."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the orientation in its EXIF data."""
_SWAPPING = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
_BAND = 1 << 20
"""Pixels that are converted at a time, so that intermediate pictures stay small."""


_BUDGET = MemoryBudget(MAX_DECODING)
# Filters of warnings belong to the process, not to a thread.
_OPENING = threading.Lock()


@dataclass
class OpenedPicture:
    """A picture of acceptable size, of which only the header was read."""

    size: tuple[int, int]
    """Width and height of the upright picture, in pixels."""
    turn: Image.Transpose | None
    """What makes it upright."""
    cost: int
    """Bytes that decoding takes, about and at most."""
    _file: Image.Image | None

    def decode(self, size: tuple[int, int] | None = None, *, scaled: bool = False) -> Image.Image:
        """The upright RGB picture; transparent ones are placed on white. To be called once.

        Args:
            size: width and height in pixels that it is resized to (bicubic).
            scaled: let libjpeg decode a JPEG at a fraction of its size, if that is at least `size`.

        Raises:
            CatalogueError: it cannot be decoded.
        """
        with _BUDGET.hold(self.cost), _named_surprises(self.cost):
            return self._decode(size, scaled)

    def _decode(self, size: tuple[int, int] | None, scaled: bool) -> Image.Image:
        file, self._file = self._file, None
        if file is None:
            raise RuntimeError("the picture has been decoded already")
        # Buffers must be gone when the memory counts as free: this call holds all references.
        if scaled and size is not None:
            # libjpeg then drops high frequencies, down to an eighth of the size.
            file.draft("RGB", size[::-1] if self.turn in _SWAPPING else size)
        picture = as_rgb(file)
        if self.turn is not None:
            picture = picture.transpose(self.turn)
        return picture if size is None else picture.resize(size, Image.Resampling.BICUBIC)


def open_picture(data: bytes) -> OpenedPicture:
    """An undecoded picture of acceptable size.

    Raises:
        CatalogueError: not a picture, or one that is too large, too long or too costly to decode.
    """
    try:
        with _OPENING, warnings.catch_warnings():
            # The size is checked below, with a clearer message than Pillow's warning, and tags that
            # are broken do not matter.
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            turn = _turn_of_header(picture, data)
        area = _require_size(picture)
        per_pixel = _bytes_per_pixel(picture, data)
    except CatalogueError:
        raise
    except Image.DecompressionBombError as error:
        raise CatalogueError(
            f"the picture is too large, more than {MAX_PIXELS // 10**6} megapixels; scale it down"
        ) from error
    except Exception as error:  # Broken headers make decoders raise anything.
        raise CatalogueError(
            "the picture cannot be read (broken, or not a JPEG, PNG, WebP, GIF, BMP or TIFF); "
            "replace the file"
        ) from error
    (width, height), cost = picture.size, area * (per_pixel + (4 if turn is not None else 0))
    if cost > MAX_DECODING:
        raise CatalogueError(
            f"the picture is {width} x {height} pixels and takes "
            f"{cost // 10**6} MB to decode, more than {MAX_DECODING // 10**6} MB; scale it down"
        )
    size = (height, width) if turn in _SWAPPING else (width, height)
    return OpenedPicture(size, turn, cost, picture)


def decode(data: bytes) -> Image.Image:
    """An upright RGB picture; transparent ones are placed on white.

    Raises:
        CatalogueError: it cannot be decoded.
    """
    return open_picture(data).decode()


def to_png(picture: Image.Image) -> bytes:
    """A picture in memory, turned upright, encoded without loss.

    Raises:
        CatalogueError: its size or its kind of pixels cannot be used, or its file is broken.
    """
    _require_size(picture)
    with _named_surprises(8 * picture.width * picture.height):
        picture.load()
        turn = _turn(picture.getexif)
        picture = picture if turn is None else picture.transpose(turn)
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            # PNG has no CMYK, YCbCr or float; the models read RGB in any case.
            picture = as_rgb(picture)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


@contextmanager
def _named_surprises(cost: int) -> Iterator[None]:
    """Make a `CatalogueError` of whatever a decoder raises."""
    try:
        yield
    except CatalogueError:
        raise
    except MemoryError as error:
        raise CatalogueError(
            f"the picture takes {cost // 10**6 + 1} MB to decode, more than is free; scale it down"
        ) from error
    except Exception as error:  # RuntimeError, struct.error, ...: each decoder has its own.
        raise CatalogueError(
            f"the picture is broken or cut off ({error}); replace the file"
        ) from error


def _require_size(picture: Image.Image) -> int:
    """Pixels of the picture, or of a tile of it if that is more.

    Raises:
        CatalogueError: too large or too long.
    """
    width, height = picture.size
    area = max(width * height, _tile_area(picture))
    if max(width, height) > MAX_SIDE or area > MAX_PIXELS:
        raise CatalogueError(
            f"the picture is {width} x {height} pixels, more than {MAX_SIDE} a side or "
            f"{MAX_PIXELS // 10**6} megapixels; scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise CatalogueError(
            f"the picture is {width} x {height} pixels, longer than {MAX_ASPECT} to 1; crop it"
        )
    return area


def _tile_area(picture: Image.Image) -> int:
    """Pixels of a tile of a TIFF, which is decoded whole even if the picture is smaller."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 0
    sides = (picture.tag_v2.get(tag, 0) for tag in (322, 323))
    width, height = (int(x[0] if isinstance(x, tuple) else x) for x in sides)
    return width * height


def _bytes_per_pixel(picture: Image.Image, data: bytes) -> int:
    """Memory for the decoder's buffers, its result and the RGB picture, where that is another."""
    bands = len(picture.getbands())
    stored = {"I;16": 2}.get(picture.mode[:4], 1 if bands == 1 and picture.mode != "I" else 4)
    buffers = 0
    if picture.format == "WEBP":
        # Two canvases, and the frame as bytes.
        buffers = 13
    elif picture.format == "TIFF":
        # A strip may be the whole picture, with 16 bits a channel.
        buffers = 8
    elif isinstance(picture, JpegImagePlugin.JpegImageFile) and picture.fp is not None:
        # With a second scan (as in a progressive one), coefficients of the whole picture.
        second = data.find(b"\xff\xda", picture.fp.tell()) >= 0
        buffers = 2 * bands if second else 0
    return stored + buffers + (0 if picture.mode == "RGB" and not _is_transparent(picture) else 4)


def _turn_of_header(picture: Image.Image, data: bytes) -> Image.Transpose | None:
    if picture.format == "TIFF":
        # Pillow turns these itself.
        return None
    if picture.format == "PNG" and "exif" not in picture.info:
        found = _png_exif(data)
        if found:
            picture.info["exif"] = found
    # Not the method of PNGs, which decodes the whole picture.
    return _turn(partial(Image.Image.getexif, picture))


def _turn(read: Callable[[], Image.Exif]) -> Image.Transpose | None:
    """What makes a picture upright."""
    try:
        return _TURNS.get(read().get(ExifTags.Base.Orientation, 1))
    except Exception:  # A broken tag says nothing; the pixels may be sound.
        return None


def _png_exif(data: bytes) -> bytes:
    """The EXIF data of a PNG, which may stand behind the pixels; empty if it has none."""
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info


def as_rgb(picture: Image.Image) -> Image.Image:
    """An RGB picture, which may be the same object; transparent ones are placed on white.

    Whole numbers of more than 8 bits are scaled. Where the file does not say how many bits count
    (32-bit pictures), the fewest of 8, 16 and 32 that hold the brightest pixel are taken.

    Raises:
        CatalogueError: the pixels are floats, or negative.
    """
    picture.load()
    if picture.mode == "F":
        raise CatalogueError(
            "the picture has floating-point pixels, whose range is not known; save it with 8 or 16 "
            "bits per channel"
        )
    if picture.mode.startswith("I"):
        shift = _bits(picture) - 8
        clear = picture.info.get("transparency")
        return _by_bands(picture, lambda band: _shifted(band, shift, clear))
    if _is_transparent(picture):
        return _by_bands(picture, _on_white)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _by_bands(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture after a conversion to RGB pixel by pixel."""
    width, height = picture.size
    if width * height <= _BAND:
        return convert(picture)
    out, rows = Image.new("RGB", picture.size), max(1, _BAND // width)
    for top in range(0, height, rows):
        out.paste(convert(picture.crop((0, top, width, min(top + rows, height)))), (0, top))
    return out


def _on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _bits(picture: Image.Image) -> int:
    """How many bits of a pixel count, at least 8."""
    tags = getattr(picture, "tag_v2", {})
    bits, signed = tags.get(258, (32,))[0], tags.get(339, (1,))[0] == 2 or not tags
    if picture.mode != "I":
        return max(8, bits) if tags else 16
    low, high = cast(tuple[int, int], picture.getextrema())
    if signed and low < 0:
        raise CatalogueError("the picture has negative pixels; save it with 8 or 16 bits of grey")
    if bits < 32:
        return bits - signed
    if low < 0:  # Unsigned numbers, which Pillow reads as signed ones.
        return 32
    return next(x for x in (8, 16, 32 - signed) if high < 1 << x)


def _shifted(picture: Image.Image, shift: int, clear: object) -> Image.Image:
    """The upper 8 bits, which is what Pillow takes of 16-bit colors; white where it is `clear`."""
    values = np.asarray(picture)
    if values.dtype == np.int32:
        values = values.view(np.uint32)
    grey = (values >> shift).astype(np.uint8)
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")
