"""What is on sale: families of near-twins, their products, and who offers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.sellers import Seller, draw_sellers
from afmrl_jax.data.marketplace.world import (
    ATTRIBUTES,
    SHARES,
    VISIBLE,
    Combination,
    allowed,
    draw_for,
    is_valid,
    residue,
    seeded,
    visible_part,
)

SPLITS = ("distill", "train", "reward", "test")
PARTS = ("learn", "choose", "report")
"""Of the reward split: RAR learns from the first, chooses a checkpoint by the second, and is
reported on the third."""


@dataclass(frozen=True)
class Offer:
    """A listing before it is photographed and described."""

    listing_id: str
    product_id: str
    family_id: str
    split: str
    part: str | None
    combination: Combination
    seller: Seller
    copies: str | None = None
    """Listing whose photo this one shows; its product is the true one."""
    duplicate_of: str | None = None
    duplicate_group: str | None = None


def draw_families(
    split: str, count: int, settings: MarketplaceSettings
) -> Iterator[list[Combination]]:
    """The products of each family of a split; no two share what can be seen."""
    taken: set[tuple[str, ...]] = set()
    for number in range(count):
        rng = seeded(settings.seed, "family", split, number)
        family: list[Combination] = []
        low, high = settings.products
        size = int(rng.integers(low, high + 1))
        while len(family) < size:
            found = _twin(family[0], split, rng) if family else draw_for(split, rng)
            key = tuple(visible_part(found).items())
            if key not in taken:
                taken.add(key)  # type: ignore[arg-type]
                family.append(found)
        yield family


def _twin(model: Combination, split: str, rng: np.random.Generator) -> Combination:
    """A product that differs from another in one or two attributes, one of which can be seen."""
    while True:
        twin = dict(model)
        # Near-twins are of one type.
        keys = [key for key in model if key != "type"]
        seen = [key for key in keys if key in VISIBLE]
        changed = [seen[int(rng.integers(len(seen)))]]
        if rng.random() < 0.5:
            changed.append(keys[int(rng.integers(len(keys)))])
        for key in changed:
            values = [x for x in allowed(key, twin) if x != model[key]]
            if values:
                twin[key] = values[int(rng.integers(len(values)))]
        # A change that makes others apply, or no longer apply, would be more than two.
        if is_valid(twin) and twin != model and residue(twin) in SHARES[split]:
            return twin


def plan(settings: MarketplaceSettings) -> list[Offer]:
    """All listings of a marketplace, in order: families, products, sellers."""
    offers: list[Offer] = []
    for split in SPLITS:
        count = getattr(settings, f"{split}_families")
        for number, family in enumerate(draw_families(split, count, settings)):
            part = PARTS[number % len(PARTS)] if split == "reward" else None
            for place, combination in enumerate(family):
                product = f"{split}-{number:05d}-{'abcd'[place]}"
                offers += _offers(product, split, part, combination, settings)
    return offers


def _offers(
    product: str,
    split: str,
    part: str | None,
    combination: Combination,
    settings: MarketplaceSettings,
) -> list[Offer]:
    """The listings of a product: its own, and copies under a second id."""
    rng = seeded(settings.seed, "offers", product)
    low, high = settings.offers
    count = int(rng.integers(low, high + 1))
    copied = split == "train" and rng.random() < settings.duplicate_share
    # Two copies, so that the second id has a pair to train on.
    sellers = draw_sellers(count + (2 if copied else 0), rng)
    first = Offer(
        listing_id=f"{product}-{sellers[0].slug}",
        product_id=product,
        family_id=product.rpartition("-")[0],
        split=split,
        part=part,
        combination=combination,
        seller=sellers[0],
        duplicate_group=product if copied and settings.duplicates_known else None,
    )
    own = [replace(first, listing_id=f"{product}-{x.slug}", seller=x) for x in sellers[:count]]
    second = f"{product}-2nd"
    return own + [
        replace(
            own[place % count],
            listing_id=f"{second}-{x.slug}",
            product_id=second,
            seller=x,
            copies=own[place % count].listing_id,
            duplicate_of=product,
        )
        for place, x in enumerate(sellers[count:])
    ]


def values_of(offers: list[Offer], *splits: str) -> dict[str, set[str]]:
    """The values of each key that occur in some splits."""
    found: dict[str, set[str]] = {key: set() for key in ATTRIBUTES}
    for offer in offers:
        if offer.split in splits:
            for key, value in offer.combination.items():
                found[key].add(value)
    return found
