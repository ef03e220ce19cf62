"""A catalogue with mixed lengths of titles and lists, and mixed picture sizes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from afmrl_jax.data.catalogue.records import Listing

SYLLABLES = ("ba", "lo", "chi", "ren", "tus", "mar", "vel", "so", "kin", "dra", "pe", "wool")
KEYS = ("colour", "material", "style", "size", "pattern", "collar", "sleeve", "season", "brand")


def mixed_catalogue(products: int, seed: int = 0) -> list[Listing]:
    """Two listings per product, the same for a given seed on every machine.

    Titles have 2 to 14 words, most of them about 6. Two listings in three have an attribute list,
    of 2 to 9 keys. Half of the pictures have full size in some aspect ratio, the others are
    smaller, down to thumbnails.
    """
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(400)]
    listings = []
    for number in range(products):
        for offer in range(2):
            count = int(np.clip(rng.lognormal(1.8, 0.4), 2, 14))
            keys = KEYS[: int(rng.integers(2, len(KEYS) + 1))] if rng.random() < 2 / 3 else ()
            listings.append(
                Listing(
                    listing_id=f"{number}-{offer}",
                    product_id=str(number),
                    title=" ".join(rng.choice(words, count)),
                    image=_picture(rng),
                    attributes={key: str(rng.choice(words)) for key in keys} or None,
                )
            )
    return listings


def _picture(rng: np.random.Generator) -> bytes:
    longest = 96 if rng.random() < 0.5 else int(rng.integers(24, 96))
    other = int(longest * rng.uniform(0.5, 1.0))
    sides = (longest, other) if rng.random() < 0.5 else (other, longest)
    pixels = rng.integers(0, 256, (*sides, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
