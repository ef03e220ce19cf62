"""The page of `afmrl match`: pairs for a person to decide about.

Like the report it is one file without scripts or outside references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.reporting.gallery import Attributes, compare_attributes, thumbnail
from afmrl_jax.reporting.page import render
from afmrl_jax.runtime.files import write_text
from afmrl_jax.types import JsonObject

PAGE_TITLE = "<title>Matches in "
"""By which a page is known as one of these."""
PLOT = 100
"""Side of the reliability diagram, in its own units."""


@dataclass(frozen=True)
class ReviewSide:
    """A listing of a pair."""

    title: str
    listing_id: str
    product_id: str
    picture: str
    """Base64 of the encoded picture, empty if there is none."""
    attributes: str
    """Attribute list, empty if there is none."""


@dataclass(frozen=True)
class ReviewedPair:
    """A pair that a person should look at."""

    number: int
    """Of the row in `review.csv`."""
    probability: float
    cosine: float
    left: ReviewSide
    right: ReviewSide

    @property
    def shown(self) -> list[tuple[ReviewSide, str | None, Attributes]]:
        """Each side with its thumbnail and its attributes, agreeing ones marked."""
        texts = compare_attributes(self.left.attributes, self.right.attributes)
        sides = (self.left, self.right)
        return [(x, thumbnail(x.picture), parts) for x, parts in zip(sides, texts, strict=True)]


@dataclass(frozen=True)
class ReviewList:
    """Pairs with something in common."""

    name: str
    title: str
    tells: str
    pairs: tuple[ReviewedPair, ...]


def write_review(
    out: Path,
    names: tuple[str, str | None],
    lists: Sequence[ReviewList],
    calibration: JsonObject,
    precision: float,
) -> Path:
    """Write the page.

    Args:
        out: the file.
        names: of the catalogue, and of the one it was matched with, if that is another.
        lists: pairs.
        calibration: `about` of a `runs.match.Judge`.
        precision: the wanted one.
    """
    points = [
        {
            "x": round(PLOT * x["predicted"], 2),
            "y": round(PLOT * (1 - x["true"]), 2),
            **x,
        }
        for x in calibration["reliability"]
    ]
    context = {
        "names": names,
        "lists": lists,
        "calibration": calibration,
        "points": points,
        "precision": precision,
    }
    return write_text(out, render("matches.html.j2", context))
