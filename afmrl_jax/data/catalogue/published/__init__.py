"""Published datasets for product retrieval, read from the folders that their authors distribute.

A layout's `rows(folder, report, **options)` gives records in the columns of our listings, one by
one, in bounded memory; `report` is called with each broken record. Pictures are named, not opened.
"""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.data.catalogue.published import (
    abo,
    hugging_face,
    m5product,
    mbe,
    online_products,
    product1m,
)
from afmrl_jax.data.catalogue.published.reading import Layout

__all__ = ["LAYOUTS", "Layout", "layout_of"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        m5product.LAYOUT,
        abo.LAYOUT,
        product1m.LAYOUT,
        online_products.LAYOUT,
        online_products.STORED_LAYOUT,
        mbe.LAYOUT,
        hugging_face.SAVED_LAYOUT,
        hugging_face.LAYOUT,
    )
}
"""The published layouts by name."""


def layout_of(folder: Path) -> Layout | None:
    """The layout of a raw folder; None if it matches none."""
    return next((layout for layout in LAYOUTS.values() if layout.found(folder)), None)
