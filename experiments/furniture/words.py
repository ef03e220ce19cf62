"""True attributes of a product, and the titles that sellers give it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.furniture.lexicon import COLOUR_WORDS, COLOURS, SYNONYMS
from experiments.furniture.render import Studio
from experiments.furniture.source import Item

PALETTE = np.array(list(COLOURS.values())) / 255.0
NAMES = list(COLOURS)
HEAD_ENDS = re.compile(r"[,(/]|\bwith\b|\bfor\b|\band\b|\bin\b|\bof\b")
WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


@dataclass(frozen=True)
class Seller:
    """A shop: the studio of its pictures and the habits of its titles."""

    name: str
    studio: Studio
    language: str = "en"
    units: str = "cm"
    colour_share: float = 0.4
    """Titles that name the colour."""
    size_share: float = 0.4
    """Titles that give the dimensions."""
    marketing: tuple[str, ...] = ()
    marketing_share: float = 0.0
    drop_share: float = 0.0
    """Chance that a word of a longer name is left out."""
    synonym_share: float = 0.0
    tag_share: float = 0.0
    """Chance that a tag of the object is added."""


def _studio(*args: object, **kwargs: object) -> Studio:
    return Studio(*args, **kwargs)  # type: ignore[arg-type]


WHITE, GREY = (1.0, 1.0, 1.0), (0.72, 0.74, 0.77)
SELLERS = (
    Seller(
        "Hallmark Home",
        _studio(-38, 10, 22, (1.05, 1.0, 0.92), 0.42, "gradient", GREY, 0.95),
        units="in",
        colour_share=0.4,
        size_share=0.35,
        marketing=("Best Price", "New!", "Free Shipping", "Premium", "Top Quality"),
        marketing_share=0.6,
        synonym_share=0.4,
        tag_share=0.3,
    ),
    Seller(
        "Bright Room",
        _studio(20, 12, 10, (0.94, 1.0, 1.06), 0.5, "white", WHITE, 0.88),
        colour_share=0.45,
        size_share=0.5,
        tag_share=0.5,
    ),
    Seller(
        "Nordhaus",
        _studio(40, 10, 28, (1.08, 0.98, 0.86), 0.38, "white", (0.97, 0.96, 0.93), 0.9),
        language="de",
        colour_share=0.5,
        size_share=0.5,
    ),
    Seller(
        "Maison Claire",
        _studio(-25, 12, 15, (1.0, 0.97, 0.9), 0.42, "wall", (0.85, 0.79, 0.7), 0.86),
        language="fr",
        colour_share=0.45,
        size_share=0.3,
        marketing=("Promo", "Nouveauté"),
        marketing_share=0.3,
    ),
    Seller(
        "Casa Viva",
        _studio(55, 12, 18, (1.06, 1.0, 0.94), 0.45, "wall", (0.66, 0.76, 0.8), 0.92),
        language="es",
        colour_share=0.4,
        size_share=0.35,
        marketing=("Oferta",),
        marketing_share=0.4,
    ),
    Seller(
        "Jia Ju",
        _studio(-50, 10, 32, (1.0, 1.0, 1.0), 0.48, "gradient", (0.93, 0.9, 0.9), 1.0),
        language="zh_CN",
        colour_share=0.5,
        size_share=0.45,
    ),
    Seller(
        "Outlet Bay",
        _studio(150, 20, 20, (0.95, 0.97, 1.05), 0.45, "dark", (0.3, 0.3, 0.33), 1.12),
        colour_share=0.3,
        size_share=0.15,
        marketing=("CHEAP", "must go", "sale", "used like new"),
        marketing_share=0.6,
        drop_share=0.35,
        synonym_share=0.5,
    ),
    Seller(
        "Everyday Living",
        _studio(70, 12, 8, (1.03, 1.0, 0.96), 0.42, "wall", (0.78, 0.82, 0.72), 0.85),
        units="in",
        colour_share=0.4,
        size_share=0.4,
        synonym_share=0.25,
        drop_share=0.15,
        tag_share=0.2,
    ),
)
CATALOGUE_SELLER = Seller(
    "Original Catalogue",
    SELLERS[0].studio,
    colour_share=0.25,
    size_share=0.4,
    tag_share=0.4,
)
"""The seller that shows the picture shipped with the model."""


def colour_name(rgb: np.ndarray) -> str:
    """Nearest palette colour, by a distance that weighs hue over brightness."""
    return NAMES[int(np.argmin(np.linalg.norm(_opponent(PALETTE) - _opponent(rgb), axis=-1)))]


def _opponent(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(rgb, float), -1, 0)
    return np.stack(
        [0.6 * (red + green + blue) / 3, red - green, 0.7 * ((red + green) / 2 - blue)], -1
    )


def true_attributes(item: Item, colour: str, accent: str | None) -> dict[str, str]:
    """What is known of a product, 5 to 8 keys."""
    head = HEAD_ENDS.split(item.name.lower())[0]
    words = [w for w in WORD.findall(head) if not w.isdigit()]
    volume = item.width * item.depth * item.height / 1e6
    out = {
        "type": words[-1] if words else item.category.lower(),
        "category": item.category.lower(),
        "color": colour,
    }
    if accent is not None and accent != colour:
        out["accent"] = accent
    out["size"] = "small" if volume < 0.05 else "medium" if volume < 0.5 else "large"
    out["dims"] = "x".join(str(max(1, round(v))) for v in (item.width, item.depth, item.height))
    across = max(item.width, item.depth)
    ratio = item.height / across
    out["shape"] = (
        "tall" if ratio > 1.6 else "flat" if ratio < 0.35 else "wide" if ratio < 0.8 else "compact"
    )
    detail = " ".join(words[:-1]) or " ".join(
        WORD.findall(item.tags[0].lower() if item.tags else "")
    )
    if detail and detail != out["type"]:
        out["style"] = detail[:24].strip()
    return out


def write_title(item: Item, colour: str, seller: Seller, rng: np.random.Generator) -> str:
    """A seller's title for an object in a colour; never empty."""
    language = seller.language if seller.language in item.names else "en"
    name = item.names.get(language, item.name)
    words = name.split()
    if len(words) > 1 and rng.random() < seller.drop_share:
        words.pop(int(rng.integers(len(words))))
    if rng.random() < seller.synonym_share:
        words = [
            str(rng.choice(SYNONYMS[w.lower()])) if w.lower() in SYNONYMS else w for w in words
        ]
    parts = [" ".join(words)]
    if rng.random() < seller.colour_share:
        if language == "en":
            spoken = colour
            if rng.random() < seller.synonym_share:
                spoken = str(rng.choice(SYNONYMS[colour]))
        else:
            spoken = COLOUR_WORDS[language][colour]
        parts.insert(int(rng.integers(2)), spoken)
    if item.tags and rng.random() < seller.tag_share:
        parts.append(str(rng.choice(item.tags)))
    if rng.random() < seller.size_share:
        parts.append(_dimensions(item, seller, rng))
    if seller.marketing and rng.random() < seller.marketing_share:
        parts.insert(int(rng.integers(2)) * len(parts), str(rng.choice(seller.marketing)))
    return " ".join(parts)


def _dimensions(item: Item, seller: Seller, rng: np.random.Generator) -> str:
    sides = (item.width, item.depth, item.height)
    if seller.units == "in":
        numbers = [f"{v / 2.54:.1f}".removesuffix(".0") for v in sides]
        return '" x '.join(numbers) + '"'
    numbers = [str(max(1, round(v))) for v in sides]
    return ("x" if rng.random() < 0.5 else " x ").join(numbers) + " cm"
