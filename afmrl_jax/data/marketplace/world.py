"""The world of garments: attributes, their values, and where each applies.

A combination is what a product is: one value for each attribute that applies. Listings with the
same combination are offers of the same product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Salience = Literal["obvious", "middle", "fine"]
Combination = dict[str, str]
"""Value by key, in the order of `ATTRIBUTES`."""


@dataclass(frozen=True)
class Attribute:
    """A key and the values it may have."""

    key: str
    values: tuple[str, ...]
    salience: Salience
    """How seldom a person who describes the garment leaves it out."""
    visible: bool = True
    """Whether a photo shows it; only titles tell the others."""


COLORS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "black": (30, 30, 34),
    "grey": (132, 134, 138),
    "brown": (112, 66, 34),
    "red": (202, 28, 38),
    "orange": (242, 130, 20),
    "yellow": (250, 216, 44),
    "green": (36, 138, 58),
    "turquoise": (52, 200, 194),
    "blue": (34, 72, 200),
    "purple": (120, 48, 162),
    "pink": (248, 152, 194),
}
"""sRGB, 0 to 255."""

_TABLE: tuple[tuple[str, str, Salience], ...] = (
    (
        "type",
        "shirt sweater jacket tunic dress jumpsuit poncho dungarees trousers skirt",
        "obvious",
    ),
    ("length", "cropped regular long full", "middle"),
    ("neckline", "round v-neck square boat keyhole cowl turtleneck", "middle"),
    ("collar", "collarless pointed rounded hooded bow ruffled", "fine"),
    ("sleeve", "sleeveless short elbow long bell puff", "middle"),
    ("waist", "seamed belted drawstring elastic sash", "fine"),
    ("hem", "straight curved peaked slanted scalloped slit", "fine"),
    (
        "pattern",
        "plain striped vertical diagonal checked dotted floral zigzag argyle leopard colorblock",
        "obvious",
    ),
    ("color", " ".join(COLORS), "obvious"),
    ("accent", " ".join(COLORS), "middle"),
    ("closure", "pullover buttoned zipped laced wrapped toggled", "middle"),
    ("pocket", "pocketless chest patch slant flap kangaroo", "fine"),
    ("trim", "untrimmed banded ribbed fringed furry lace", "fine"),
    ("material", "cotton wool linen silk polyester viscose", "middle"),
    ("care", "machine hand dry gentle", "fine"),
)
HIDDEN = ("material", "care")
"""Keys that no photo shows."""
ATTRIBUTES: dict[str, Attribute] = {
    key: Attribute(key, tuple(values.split()), salience, key not in HIDDEN)
    for key, values, salience in _TABLE
}
"""By key, in the order in which they are chosen and written."""
VISIBLE = tuple(key for key in ATTRIBUTES if key not in HIDDEN)
ABSENT = frozenset(
    ("collarless", "seamed", "straight", "plain", "pullover", "pocketless", "untrimmed")
)
"""Values that say that there is nothing to see, which few sellers write down."""

UPPER = frozenset(("shirt", "sweater", "jacket", "tunic", "dress", "jumpsuit", "poncho"))
LEGS = frozenset(("jumpsuit", "dungarees", "trousers"))
WAISTED = frozenset(("dress", "jumpsuit", "dungarees", "trousers", "skirt"))


Rule = Callable[[tuple[str, ...], Mapping[str, str]], tuple[str, ...]]


def _where(applies: Callable[[Mapping[str, str]], bool]) -> Rule:
    """All values where a condition holds, none elsewhere."""
    return lambda values, chosen: values if applies(chosen) else ()


def _accents(values: tuple[str, ...], chosen: Mapping[str, str]) -> tuple[str, ...]:
    if chosen["pattern"] == "plain":
        return ()
    return tuple(x for x in values if x != chosen["color"])


def _pockets(values: tuple[str, ...], chosen: Mapping[str, str]) -> tuple[str, ...]:
    if chosen["length"] == "cropped":
        return ()
    kind = chosen["type"]
    above = () if kind in UPPER else ("kangaroo",) if kind == "dungarees" else ("chest", "kangaroo")
    return tuple(x for x in values if x not in above) if above else values


# A cropped garment has no room for closures and pockets between its neckline and its hem; a slit
# takes that of a closure, and so do the waist and the legs of a jumpsuit.
_RULES: dict[str, Rule] = {
    "neckline": _where(lambda x: x["type"] in UPPER),
    "collar": _where(lambda x: x.get("neckline", "turtleneck") != "turtleneck"),
    "sleeve": _where(lambda x: x["type"] in UPPER and x["type"] != "poncho"),
    "waist": _where(lambda x: x["type"] in WAISTED),
    "hem": _where(lambda x: x["type"] not in LEGS),
    "accent": _accents,
    "closure": _where(
        lambda x: x["type"] in UPPER - LEGS and x["length"] != "cropped" and x["hem"] != "slit"
    ),
    "pocket": _pockets,
}
"""Where an attribute applies, by the values of those before it; the others always do."""


def allowed(key: str, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """The values that an attribute may have; none if it does not apply.

    Args:
        key: of the attribute.
        chosen: values of the attributes before it.
    """
    values = ATTRIBUTES[key].values
    rule = _RULES.get(key)
    return values if rule is None else rule(values, chosen)


def others(key: str, combination: Mapping[str, str]) -> list[str]:
    """The values that an attribute of a combination may have besides its own."""
    return [x for x in allowed(key, combination) if x != combination[key]]


def is_valid(combination: Mapping[str, str]) -> bool:
    """Whether every attribute that applies, and nothing else, has one of its values."""
    return (
        combination.keys() <= ATTRIBUTES.keys()
        and all(value in allowed(key, combination) for key, value in combination.items())
        and all(key in combination for key in ATTRIBUTES if allowed(key, combination))
    )


def draw_combination(rng: np.random.Generator) -> Combination:
    """A combination, every value as likely as the others of its attribute that are allowed."""
    chosen: Combination = {}
    for key, share in zip(ATTRIBUTES, rng.random(len(ATTRIBUTES)).tolist(), strict=True):
        values = allowed(key, chosen)
        if values:
            chosen[key] = values[int(share * len(values))]
    return chosen


def visible_part(combination: Mapping[str, str]) -> Combination:
    """What a photo shows of a product."""
    return {key: value for key, value in combination.items() if key in VISIBLE}


RESIDUES = 16
"""Parts into which a hash divides all visible combinations."""
SHARES: dict[str, range] = {
    "stream": range(0, 8),
    "distill": range(8, 10),
    "train": range(10, 12),
    "reward": range(12, 14),
    "test": range(14, 16),
}
"""The parts of each split, and of the stream for pretraining: no two share a combination, whatever
the seeds."""


def residue(combination: Mapping[str, str]) -> int:
    """The part that a combination belongs to, by what can be seen of it.

    The hash is stable, so a model that was pretrained on the stream has never seen a combination of
    any catalogue.
    """
    text = ";".join(f"{key}={combination[key]}" for key in VISIBLE if key in combination)
    return hashlib.sha256(text.encode()).digest()[0] % RESIDUES


def seeded(*path: object) -> np.random.Generator:
    """A random generator of its own for everything that has a name."""
    digest = hashlib.sha256("/".join(map(str, path)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def draw_for(share: str, rng: np.random.Generator) -> Combination:
    """A combination out of one of `SHARES`."""
    while True:
        found = draw_combination(rng)
        if residue(found) in SHARES[share]:
            return found
