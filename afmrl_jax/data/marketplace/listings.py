"""A row of the catalogue: an offer with its photo, its title and what the oracle says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.lists import oracle_text
from afmrl_jax.data.marketplace.photo import copy_photo, encode, take_photo
from afmrl_jax.data.marketplace.plan import Offer
from afmrl_jax.data.marketplace.sellers import Seller
from afmrl_jax.data.marketplace.titles import Title, write_title
from afmrl_jax.data.marketplace.world import seeded

Row = dict[str, str | bytes | None]
COLUMNS = (
    "listing_id", "product_id", "family_id", "split", "part", "seller", "category", "title",
    "language", "stated", "attributes", "oracle", "duplicate_of", "duplicate_group", "image",
)  # fmt: skip
"""Of the catalogue's file. `language` and `stated`, the keys that the title states, are for
analysis: training does not read them."""


def photo_of(
    listing_id: str, combination: Mapping[str, str], seller: Seller, settings: MarketplaceSettings
) -> bytes:
    """The photo of a listing, as JPEG."""
    rng = seeded(settings.seed, "photo", listing_id)
    image = take_photo(combination, seller, settings.pixels, settings.badges, rng)
    return encode(image, seller.quality)


def title_of(offer: Offer, settings: MarketplaceSettings) -> Title:
    """The title of a listing."""
    rng = seeded(settings.seed, "title", offer.listing_id)
    return write_title(
        offer.combination, offer.seller, settings.title_share, settings.title_synonyms, rng
    )


def row_of(offer: Offer, sellers: Mapping[str, Seller], settings: MarketplaceSettings) -> Row:
    """A listing.

    Args:
        offer: what is offered.
        sellers: by listing id, of the listings whose photos are copied.
        settings: of the marketplace.
    """
    title = title_of(offer, settings)
    if offer.copies is None:
        picture = photo_of(offer.listing_id, offer.combination, offer.seller, settings)
    else:
        original = photo_of(offer.copies, offer.combination, sellers[offer.copies], settings)
        rng = seeded(settings.seed, "copy", offer.listing_id)
        picture = encode(copy_photo(original, settings.badges, rng), offer.seller.quality)
    oracle = None
    if offer.split == "distill":
        rng = seeded(settings.seed, "oracle", offer.listing_id)
        oracle = oracle_text(offer.combination, title.stated, settings, rng)
    return {
        "listing_id": offer.listing_id,
        "product_id": offer.product_id,
        "family_id": offer.family_id,
        "split": offer.split,
        "part": offer.part,
        "seller": offer.seller.name,
        "category": offer.combination["type"],
        "title": title.text,
        "language": offer.seller.language,
        "stated": " ".join(title.stated),
        "attributes": json.dumps(offer.combination),
        "oracle": oracle,
        "duplicate_of": offer.duplicate_of,
        "duplicate_group": offer.duplicate_group,
        "image": picture,
    }
