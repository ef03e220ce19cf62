"""Small copies of pictures, for results that people look at."""

from __future__ import annotations

import io

from afmrl_jax.data.catalogue.pictures import open_picture

SIDES = (16, 1024)
"""Pixels of the shortest and of the longest longer side that is offered."""
QUALITY = 85


def thumbnail(data: bytes, side: int) -> bytes:
    """A picture as a JPEG whose longer side has at most `side` pixels; small ones keep their size.

    Raises:
        CatalogueError: the picture cannot be used.
    """
    opened = open_picture(data)
    width, height = opened.size
    scale = min(1.0, side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    opened.decode(size, scaled=True).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
