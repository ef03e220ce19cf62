"""Queries and their hits, made safe and small for the report.

Everything in a gallery comes from an untrusted catalogue: the template escapes its texts, and its
pictures are decoded and checked here before they enter the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from afmrl_jax.data.attributes.text_format import is_malformed, parse_attributes
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.errors import CatalogueError
from afmrl_jax.reporting.tables import number
from afmrl_jax.types import JsonObject

SIDE = 240
"""Longest side of a picture in the report, pixels."""
QUALITY = 85
RESULTS = 5


@dataclass(frozen=True)
class Part:
    """A key-value pair of an attribute list, or a piece of a malformed one."""

    key: str
    value: str
    state: str
    """`kept`, `reworded` (same key, different value), `dropped` or `new`."""


@dataclass(frozen=True)
class Attributes:
    """An attribute text, part by part."""

    parts: tuple[Part, ...]
    malformed: bool

    def __bool__(self) -> bool:
        return bool(self.parts)


def unreadable(text: str) -> bool:
    """Whether tokens were cut inside a letter, so that the text has a replacement character."""
    return "\N{REPLACEMENT CHARACTER}" in text


@dataclass(frozen=True)
class Hit:
    """A listing found."""

    title: str
    listing_id: str
    picture: str | None
    score: float
    correct: bool


@dataclass(frozen=True)
class Query:
    """A query listing, its attributes before and after RAR, and its first hits."""

    title: str
    listing_id: str
    picture: str | None
    before: Attributes
    after: Attributes
    truth: str | None
    hits: tuple[Hit, ...]

    @property
    def first_right(self) -> int | None:
        """Place of the first correct hit, from 1."""
        return next((n for n, hit in enumerate(self.hits, 1) if hit.correct), None)


def _pairs(text: str) -> list[tuple[str, str]]:
    if not is_malformed(text):
        return parse_attributes(text)
    return [("", part.strip()) for part in text.split(";") if part.strip()]


def compare_attributes(before: str, after: str) -> tuple[Attributes, Attributes]:
    """What reinforcement changed in an attribute list; a new order by itself is no change.

    Example:
        >>> old, new = compare_attributes("color: red; type: seat", "type: chair; color: red")
        >>> [(part.value, part.state) for part in new.parts]
        [('chair', 'reworded'), ('red', 'kept')]
    """
    old, new = _pairs(before), _pairs(after)

    def parts(
        own: list[tuple[str, str]], other: list[tuple[str, str]], gone: str
    ) -> tuple[Part, ...]:
        keys = {key for key, _ in other if key}
        return tuple(
            Part(
                key, value, "kept" if (key, value) in other else "reworded" if key in keys else gone
            )
            for key, value in own
        )

    return (
        Attributes(parts(old, new, "dropped"), _broken(before)),
        Attributes(parts(new, old, "new"), _broken(after)),
    )


def _broken(text: str) -> bool:
    return bool(text.strip()) and (is_malformed(text) or unreadable(text))


def thumbnail(data: str | None) -> str | None:
    """A base64 picture as a small JPEG `data:` URL; None if it is not a usable picture.

    Args:
        data: base64 of an encoded picture.
    """
    try:
        picture = decode(base64.b64decode(data or "", validate=True))
    except (ValueError, CatalogueError):
        return None
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def read_gallery(items: Sequence[JsonObject]) -> list[Query]:
    """The queries of `gallery.json` drawn from all, ready for the template."""
    out = []
    for item in items:
        if item.get("changed"):
            continue
        query = item["query"]
        before, after = compare_attributes(
            item.get("attributes_before") or "", item.get("attributes_after") or ""
        )
        hits = tuple(
            Hit(
                title=hit["title"],
                listing_id=hit["listing_id"],
                picture=thumbnail(hit.get("image")),
                score=float(hit["score"]),
                correct=bool(hit["correct"]),
            )
            for hit in item["results"][:RESULTS]
        )
        out.append(
            Query(
                title=query["title"],
                listing_id=query["listing_id"],
                picture=thumbnail(query.get("image")),
                before=before,
                after=after,
                truth=item.get("true_attributes"),
                hits=hits,
            )
        )
    return out


@dataclass(frozen=True)
class Found:
    """A listing found with the lists, or without them."""

    title: str
    listing_id: str
    picture: str | None
    attributes: Attributes
    correct: bool


@dataclass(frozen=True)
class Changed:
    """A query whose first hit the lists changed."""

    title: str
    listing_id: str
    picture: str | None
    attributes: Attributes
    without: Found
    read: Found
    """Found with the lists."""
    gained: bool
    decisive: str
    """The key whose removal from the three lists undoes most of the change; empty if none does."""
    effect: float
    """What it moves the margin between the two by, in hundredths of cosine similarity."""


def _read(text: str | None) -> Attributes:
    return compare_attributes(text or "", text or "")[0]


def read_changes(items: Sequence[JsonObject]) -> list[Changed]:
    """The queries of `gallery.json` whose first hit the lists changed."""
    out = []
    for item in items:
        changed = item.get("changed")
        if not changed:
            continue
        sides = [
            Found(
                title=side["title"],
                listing_id=side["listing_id"],
                picture=thumbnail(side.get("image")),
                attributes=_read(side.get("attributes")),
                correct=correct,
            )
            for side, correct in ((changed["right"], True), (changed["wrong"], False))
        ]
        gained = bool(changed["gained"])
        read, without = sides if gained else sides[::-1]
        # A positive effect moved the right one ahead.
        effects = {key: number(x) for key, x in (changed.get("effects") or {}).items()}
        pushes = {key: x if gained else -x for key, x in effects.items() if x is not None}
        decisive = max(pushes, key=lambda key: pushes[key], default="")
        if pushes.get(decisive, 0.0) <= 0:
            decisive = ""
        query = item["query"]
        out.append(
            Changed(
                title=query["title"],
                listing_id=query["listing_id"],
                picture=thumbnail(query.get("image")),
                attributes=_read(changed.get("attributes")),
                without=without,
                read=read,
                gained=gained,
                decisive=decisive,
                effect=100 * pushes.get(decisive, 0.0),
            )
        )
    return out
