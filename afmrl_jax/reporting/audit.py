"""The page of `afmrl audit-negatives`: masked and heavy pairs, for a person to judge.

Like the report it is one file without scripts or outside references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.reporting.gallery import Attributes, compare_attributes, thumbnail
from afmrl_jax.reporting.page import render
from afmrl_jax.runtime.files import write_text
from afmrl_jax.types import JsonObject

LISTS = {
    "nearest": (
        "Masked, nearest the threshold",
        "Whether the threshold is too low: other products here are hard negatives that the mask "
        "discards.",
    ),
    "farthest": (
        "Masked, farthest above the threshold",
        "Whether the mask finds anything: these should be the same product; otherwise the "
        "embedder confuses them and is no longer corrected.",
    ),
    "spared": (
        "Left in, nearest below the threshold",
        "Whether the threshold is too high: the same product here is a false negative that "
        "training pushes apart.",
    ),
    "heaviest": (
        "Left in, heaviest",
        "Whether the weights are large where they should be: heavy pairs should share "
        "attributes and be different products.",
    ),
}
"""Title of each list of pairs, and what it shows."""

PAGE_TITLE = "<title>Negatives of "
"""By which a page is known as one of these."""


@dataclass(frozen=True)
class Side:
    """A listing of a pair."""

    title: str
    listing_id: str
    product_id: str
    category: str | None
    picture: str | None
    attributes: Attributes


@dataclass(frozen=True)
class Mark:
    """A position on the line of scores, in percent of its width."""

    name: str
    value: float
    place: float


@dataclass(frozen=True)
class Card:
    """A pair as the page shows it."""

    pair: JsonObject
    sides: tuple[Side, Side]
    marks: tuple[Mark, ...]
    verdict: str
    """`same product`, `other product of the family` or `other product`, by the catalogue."""


def _marks(pair: JsonObject) -> tuple[Mark, ...]:
    values = {"pair": pair["score"], "positive": pair["positive_score"]}
    if pair["threshold"] is not None:
        values["threshold"] = pair["threshold"]
    # A threshold may exceed the largest cosine; then the line is extended.
    low, high = min(0.0, *values.values()), max(1.0, *values.values())
    return tuple(
        Mark(name, value, round(100 * (value - low) / (high - low), 2))
        for name, value in values.items()
    )


def _card(pair: JsonObject, listings: JsonObject, pictures: Mapping[int, str]) -> Card:
    records = [listings[str(pair[side])] for side in ("query", "candidate")]
    # Pairs in both lists count as kept; the rest is highlighted.
    texts = compare_attributes(*(x["attributes"] for x in records))
    sides = [
        Side(x["title"], x["listing_id"], x["product_id"], x["category"], thumbnail(picture), parts)
        for x, picture, parts in zip(
            records, (pictures[pair[s]] for s in ("query", "candidate")), texts, strict=True
        )
    ]
    families = [x["family_id"] for x in records]
    related = families[0] is not None and families[0] == families[1]
    verdict = "other product of the family" if related else "other product"
    verdict = "same product" if pair["same_product"] else verdict
    return Card(pair, (sides[0], sides[1]), _marks(pair), verdict)


def _bars(histogram: JsonObject) -> list[dict[str, float]]:
    """The histogram of weights: each bin's bounds, share of the pairs, and height in percent."""
    counts = histogram["left"]
    total, tallest = max(sum(counts), 1), max(*counts, 1)
    edges = histogram["edges"]
    return [
        {
            "low": edges[place],
            "high": edges[place + 1],
            "pairs": count,
            "share": count / total,
            "height": round(100 * count / tallest, 2),
        }
        for place, count in enumerate(counts)
    ]


def write_page(found: JsonObject, pictures: Mapping[int, str], out: Path) -> Path:
    """Write the page.

    Args:
        found: the result of `runs.audit.audit`.
        pictures: base64 of the encoded picture of each listing shown, by its number.
        out: the file.
    """
    lists = [
        {
            "name": name,
            "title": title,
            "tells": tells,
            "cards": [_card(x, found["listings"], pictures) for x in found["examples"][name]],
        }
        for name, (title, tells) in LISTS.items()
    ]
    context = {"found": found, "lists": lists, "bars": _bars(found["histogram"])}
    return write_text(out, render("audit.html.j2", context))
