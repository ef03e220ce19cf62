"""Some parts of listings, as two programs that should agree are given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.catalogue.records import Listing

KINDS = (("text",), ("image",), ("text", "image"), ("text", "image", "attributes"))
"""Parts of a listing that are embedded together."""


class Parts(NamedTuple):
    """Some parts of a listing."""

    text: str | None
    images: tuple[bytes, ...]
    """Encoded."""
    attributes: str | None

    def item(self) -> dict[str, object]:
        """The same as `Embedder.encode` takes it."""
        found = {"text": self.text, "image": list(self.images), "attributes": self.attributes}
        return {name: x for name, x in found.items() if x}


def parts_of(listing: Listing, kind: Sequence[str], most: int) -> Parts:
    """Some parts of a listing, with `most` pictures at most.

    Attributes are the oracle's or the true ones; of a listing without any, a list that says its
    title.
    """
    known = listing.attributes or {"title": listing.title.replace(";", ",")}
    attributes = listing.oracle or format_attributes(known.items())
    places = range(min(len(listing.pictures), most)) if "image" in kind else ()
    return Parts(
        listing.title if "text" in kind else None,
        tuple(map(listing.read_image_bytes, places)),
        attributes if "attributes" in kind else None,
    )
