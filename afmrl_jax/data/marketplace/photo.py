"""A seller's photo of a garment, and the same photo as another seller copies it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from PIL import Image

from afmrl_jax.data.marketplace.garment import Garment
from afmrl_jax.data.marketplace.pen import SIDE, Color, Pen, Pose
from afmrl_jax.data.marketplace.sellers import Seller

LARGER = 3
"""A picture is drawn so many times as large, and reduced by averaging."""
SKINS: tuple[Color, ...] = ((232, 200, 170), (198, 150, 112), (120, 84, 62), (214, 214, 212))
STICKERS: tuple[Color, ...] = ((214, 30, 40), (20, 120, 60), (20, 80, 190), (240, 190, 20))


def take_photo(
    combination: Mapping[str, str],
    seller: Seller,
    pixels: int,
    badges: float,
    rng: np.random.Generator,
) -> Image.Image:
    """A photo of a product by a seller, RGB, `pixels` wide and high.

    Args:
        combination: the product; only its visible part matters.
        seller: whose studio it is.
        pixels: side of the result.
        badges: probability of a badge.
        rng: decides everything that the seller leaves open.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(rng.random())

    scale = LARGER * pixels / SIDE
    pose = Pose(
        degrees=seller.lean + between(-4, 4),
        zoom=seller.zoom * between(0.94, 1.02),
        stretch=between(0.96, 1.04),
        shift=(between(-2.5, 2.5), between(-2.0, 2.0)),
        mirrored=bool(rng.random() < 0.5),
    )
    image = _backdrop(seller, LARGER * pixels).copy()
    arms = seller.arms + between(-3, 3)
    skin = SKINS[int(rng.integers(len(SKINS)))]
    Garment(combination, arms, seller.stand, skin).draw(image, pose, scale, rng)
    if rng.random() < badges:
        _badge(image, scale, rng)
    return _lit(image.reduce(LARGER), seller, rng)


@lru_cache(maxsize=64)
def _backdrop(seller: Seller, side: int) -> Image.Image:
    """A seller's background."""
    kind, first, second = seller.backdrop
    image = Image.new("RGB", (side, side), first)
    if kind == "fade":
        steps = np.linspace(0, 1, side)[:, None, None]
        column = np.round(np.array(first) * (1 - steps) + np.array(second) * steps)
        image = Image.fromarray(np.repeat(column.astype(np.uint8), side, axis=1))
    elif kind == "floor":
        image.paste(second, (0, round(0.78 * side), side, side))
    elif kind == "planks":
        for number in range(6):
            if number % 2:
                image.paste(second, (number * side // 6, 0, (number + 1) * side // 6, side))
    return image


def _badge(image: Image.Image, scale: float, rng: np.random.Generator) -> None:
    """A sticker in a corner, which says nothing about the product."""
    pen = Pen(image, Pose(), scale)
    color = STICKERS[int(rng.integers(len(STICKERS)))]
    side, low = (int(x) for x in rng.integers(2, size=2))
    x, y = (38.0 if side else -38.0), (86.0 if low else 10.0)
    pen.disc((x, y), 8.5, color, (255, 255, 255), 1.2)
    if rng.random() < 0.5:
        pen.line([(x - 4, y), (x + 4, y)], (255, 255, 255), 2.4)
    else:
        pen.line([(x - 4, y + 4), (x + 4, y - 4)], (255, 255, 255), 2.0)


def _lit(image: Image.Image, seller: Seller, rng: np.random.Generator) -> Image.Image:
    """The seller's light: brightness, tint, a darker side and a little noise."""
    pixels = np.asarray(image, np.float32)
    side = pixels.shape[0]
    gain = np.array(seller.tint, np.float32) * np.float32(
        seller.brightness * (0.96 + 0.08 * float(rng.random()))
    )
    fall = np.linspace(1.0, 1.0 - seller.side_light, side, dtype=np.float32)
    if rng.random() < 0.5:
        fall = fall[::-1]
    shading = fall[:, None] if rng.random() < 0.5 else fall[None, :]
    noise = rng.integers(-4, 5, pixels.shape, np.int8)
    lit = pixels * gain * shading[..., None] + noise
    return Image.fromarray(np.clip(np.round(lit), 0, 255).astype(np.uint8))


def copy_photo(encoded: bytes, badges: float, rng: np.random.Generator) -> Image.Image:
    """A photo that another seller took over: cropped a little, brought back to its size.

    Args:
        encoded: the photo as its first seller shows it.
        badges: probability of another badge.
        rng: decides.
    """
    with Image.open(io.BytesIO(encoded)) as file:
        image = file.convert("RGB")
    side = image.width
    left, top, right, low = (int(x) for x in rng.integers(0, max(2, side // 14), 4))
    image = image.resize(
        image.size, Image.Resampling.BILINEAR, (left, top, side - right, side - low)
    )
    if rng.random() < badges:
        _badge(image, side / SIDE, rng)
    return image


def encode(image: Image.Image, quality: int) -> bytes:
    """A picture as JPEG, with colors at full resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
