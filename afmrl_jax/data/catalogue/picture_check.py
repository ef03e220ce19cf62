"""Whether the pictures of a listing can be used."""

from __future__ import annotations

from afmrl_jax.data.catalogue.pictures import decode, open_picture
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError


def checked_pictures(listing: Listing, *, decoded: bool) -> tuple[bytes, ...]:
    """The encoded pictures of a listing, all of which can be used.

    Args:
        listing: with one picture or several.
        decoded: decode them; otherwise only their headers are read.

    Raises:
        CatalogueError: "what is wrong; the remedy"; of several pictures it names the place.
    """
    out = []
    for place in range(len(listing.pictures)):
        try:
            picture = listing.read_image_bytes(place)
            decode(picture) if decoded else open_picture(picture)
        except CatalogueError as error:
            if not listing.more_images:
                raise
            raise CatalogueError(f"picture {place + 1}: {error}") from error
        out.append(picture)
    return tuple(out)
