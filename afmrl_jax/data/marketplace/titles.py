"""Titles as sellers write them: a part of the attributes, and words that say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.marketplace.lexicon import ITEM, MARKETING, PHRASES, Language
from afmrl_jax.data.marketplace.sellers import Seller
from afmrl_jax.data.marketplace.world import ABSENT

_WEIGHTS = {"type": 8.0, "color": 3.0, "pattern": 2.0, "material": 2.0, "care": 0.5}
"""How readily sellers state a key; 1 for the others."""
_UNSAID = 0.25
"""Factor of the weight of a value that says that there is nothing to see."""


@dataclass(frozen=True)
class Title:
    """A title and what it says."""

    text: str
    stated: tuple[str, ...]
    """Keys, in the order of the combination."""


def stated_keys(
    combination: Mapping[str, str], share: tuple[float, float], rng: np.random.Generator
) -> tuple[str, ...]:
    """The keys that a title states: at least one.

    Args:
        combination: the product.
        share: smallest and largest share of its keys.
        rng: decides.
    """
    left = list(combination)
    low, high = share
    count = round((low + (high - low) * float(rng.random())) * len(left))
    weights = [
        _WEIGHTS.get(key, 1.0) * (_UNSAID if combination[key] in ABSENT else 1.0) for key in left
    ]
    found = set()
    for _ in range(max(1, count)):
        point = float(rng.random()) * sum(weights)
        place = 0
        while place < len(left) - 1 and point >= weights[place]:
            point -= weights[place]
            place += 1
        found.add(left.pop(place))
        del weights[place]
    return tuple(key for key in combination if key in found)


def phrase(
    key: str, value: str, language: Language, synonyms: float, rng: np.random.Generator
) -> str:
    """Words for a value: the usual ones, or with probability `synonyms` others if there are any."""
    words = PHRASES[key][value][language]
    other = rng.random() < synonyms and len(words) > 1
    return words[1 + int(rng.integers(len(words) - 1))] if other else words[0]


def states(title: str, key: str, value: str) -> bool:
    """Whether a title has words for a value, in any language.

    Example:
        >>> states("RED DRESS - V-NECK", "neckline", "v-neck"), states("red dress", "hem", "slit")
        (True, False)
    """
    said = title.lower()
    return any(x.lower() in said for words in PHRASES[key][value].values() for x in words)


def write_title(
    combination: Mapping[str, str],
    seller: Seller,
    share: tuple[float, float],
    synonyms: float,
    rng: np.random.Generator,
) -> Title:
    """The title of one listing.

    Args:
        combination: the product.
        seller: whose listing it is.
        share: smallest and largest share of the keys that it states.
        synonyms: probability that a value is not written in its usual words.
        rng: decides everything that the seller leaves open.
    """
    stated = stated_keys(combination, share, rng)
    said = {key: phrase(key, combination[key], seller.language, synonyms, rng) for key in stated}
    kind = said.pop("type", ITEM[seller.language])
    words = [said[key] for key in seller.order if key in said]
    words.insert(0 if seller.type_first else len(words), kind)
    fluff = MARKETING[seller.language]
    for _ in range(int(seller.marketing + float(rng.random()))):
        words.insert(int(rng.integers(len(words) + 1)), fluff[int(rng.integers(len(fluff)))])
    if rng.random() < seller.codes:
        words.append(f"{int(rng.integers(10**5)):05d}")
    text = seller.separator.join(words)
    casings = {"lower": text.lower, "upper": text.upper, "title": text.title}
    return Title(casings[seller.casing](), stated)
