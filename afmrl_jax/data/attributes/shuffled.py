"""Lists of other products: the control that says how much of a gain is due to what lists say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.catalogue.splits import linked
from afmrl_jax.errors import CatalogueError

ROUNDS = 200
"""Most rounds of repairing a permutation. In the second half only what must not be is repaired."""
Text = TypeVar("Text")


def shuffled_lists(lists: Lists, listings: Sequence[Listing], seed: int) -> Lists:
    """The lists of some listings, each given to a listing of another product.

    They are shuffled over listings and not over products: if all listings of a product got their
    lists from one other product, the lists would still tell that they belong together.

    Args:
        lists: of these listings; others are dropped.
        listings: of one split.
        seed: of the permutation.

    Returns:
        Each listing's own lists replaced by those of its donor: greedy and sampled ones alike.

    Raises:
        CatalogueError: there are too few products for that.
    """
    donors = donors_of(listings, seed)
    ids = [x.listing_id for x in listings]

    def given(texts: Mapping[str, Text]) -> dict[str, Text]:
        found = {own: ids[donor] for own, donor in zip(ids, donors, strict=True)}
        return {own: texts[donor] for own, donor in found.items() if donor in texts}

    samples = {shown: given(texts) for shown, texts in lists.samples.items()}
    return Lists(given(lists.both), given(lists.image), given(lists.text), samples)


def donors_of(listings: Sequence[Listing], seed: int) -> np.ndarray:
    """A permutation int [n] in which no listing meets its own product or a duplicate of it.

    Where products are many enough, the donors of a product's listings are of different products.

    Raises:
        CatalogueError: there are too few products for that.
    """
    products = [x.true_product for x in listings]
    first = linked(products, [x.duplicate_group for x in listings])
    own = np.unique([first[x] for x in products], return_inverse=True)[1]
    rng = np.random.default_rng([seed, 78])
    donors = rng.permutation(len(own))
    for number in range(ROUNDS):
        bad = own[donors] == own
        if number < ROUNDS // 2:
            # Of the listings that one product gives to another, all but the first.
            repeated = np.ones(len(own), bool)
            repeated[np.unique(own * len(own) + own[donors], return_index=True)[1]] = False
            bad |= repeated
        if not bad.any():
            break
        places = np.flatnonzero(bad)
        for one, other in zip(places, rng.integers(len(own), size=len(places)), strict=True):
            donors[one], donors[other] = donors[other], donors[one]
    if (own[donors] == own).any():
        raise CatalogueError(
            f"{len(set(own.tolist()))} products are too few to give each listing the list of "
            "another product; leave controls off"
        )
    return donors
