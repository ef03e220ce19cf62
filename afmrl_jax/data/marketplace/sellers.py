"""The sellers: each has a language, a way to write titles and a studio of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.marketplace.lexicon import Language
from afmrl_jax.data.marketplace.world import ATTRIBUTES, seeded

Backdrop = tuple[str, tuple[int, int, int], tuple[int, int, int]]
"""Kind of background and its two colors."""

_NAMES: dict[Language, str] = {
    "en": "North Lane,Harbour Row,Elm & Co,Twelve Yards,Daily Cloth,Fox Street,Bluebell,Old Mill",
    "de": "Nordstoff,Kleiderei,Lindenhof,Fadenwerk",
    "fr": "Rue Claire,Maison Lune,Atelier Sud,Petit Fil",
    "es": "Casa Roja,Hilo Fino,Plaza Mayor,Mar y Lana",
}


@dataclass(frozen=True)
class Seller:
    """How one seller writes and photographs."""

    name: str
    language: Language
    order: tuple[str, ...]
    """Keys in the order in which titles state them."""
    type_first: bool
    separator: str
    casing: str
    """`lower`, `title` or `upper`"""
    marketing: float
    """Mean number of words that say nothing."""
    codes: float
    """Probability of an article number, which is drawn anew for each listing."""
    backdrop: Backdrop
    brightness: float
    tint: tuple[float, float, float]
    """Gain of each channel."""
    side_light: float
    """How much darker one side is."""
    zoom: float
    lean: float
    """Mean turn of the garment in degrees."""
    arms: float
    """Angle of the sleeves in degrees."""
    stand: str
    """What wears it: `mannequin`, `hanger` or `flat`."""
    quality: int
    """Of the JPEG."""

    @property
    def slug(self) -> str:
        """The name as a part of an id."""
        return self.name.lower().replace(" & ", " ").replace(" ", "-")


_BACKDROPS = ("plain", "fade", "floor", "planks")


def _seller(name: str, language: Language) -> Seller:
    rng = seeded("seller", name)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(rng.random())

    def one_of(*options: str) -> str:
        return options[int(rng.integers(len(options)))]

    keys = list(ATTRIBUTES)
    tone = between(176, 244)
    hue = [between(-12, 12) for _ in range(3)]
    first = tuple(round(tone + x) for x in hue)
    second = tuple(round(tone - between(14, 34) + x) for x in hue)
    return Seller(
        name=name,
        language=language,
        order=tuple(keys[i] for i in rng.permutation(len(keys))),
        type_first=bool(rng.random() < 0.6),
        separator=one_of(" ", " ", " ", ", ", " - ", " | "),
        casing=one_of("lower", "lower", "title", "title", "upper"),
        marketing=between(0, 1.6),
        codes=0.5 if rng.random() < 0.25 else 0.0,
        backdrop=(one_of(*_BACKDROPS), _rgb(first), _rgb(second)),
        brightness=between(0.9, 1.06),
        tint=(between(0.96, 1.04), between(0.97, 1.03), between(0.95, 1.05)),
        side_light=between(0.0, 0.12),
        zoom=between(0.95, 1.03),
        lean=between(-3, 3),
        arms=between(10, 24),
        stand=one_of("mannequin", "hanger", "flat"),
        quality=int(rng.integers(82, 93)),
    )


def _rgb(values: tuple[int, ...]) -> tuple[int, int, int]:
    red, green, blue = (min(max(x, 0), 255) for x in values)
    return red, green, blue


SELLERS = tuple(
    _seller(name, language) for language, names in _NAMES.items() for name in names.split(",")
)
"""The same in every marketplace: what is drawn from a seed is what they sell."""


def draw_sellers(count: int, rng: np.random.Generator) -> list[Seller]:
    """Different sellers, as many as asked for."""
    return [SELLERS[i] for i in rng.permutation(len(SELLERS))[:count]]
