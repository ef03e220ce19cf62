"""What was found, as HTML: every text of a listing is escaped, and its address checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from afmrl_jax.reporting.gallery import Part, compare_attributes
from afmrl_jax.runs.living.filters import number_of, text_of
from afmrl_jax.types import JsonObject

ADDRESSES = ("url", "link", "href", "product_url")
"""Names of columns with the address of a listing, best first; letters' case does not matter."""
CURRENCIES = ("currency", "price_currency")
LONGEST = 200
"""Letters that are shown of a carried column."""


@dataclass(frozen=True)
class Shown:
    """A listing as a card shows it."""

    listing_id: str
    title: str
    score: float
    thumbnail: str | None
    """Address of its picture, on this service."""
    price: str | None
    url: str | None
    """Where the shop shows it; only of http and https."""
    facts: tuple[tuple[str, str], ...]
    """What else the shop said."""
    parts: tuple[Part, ...]
    """Its attributes, as they compare with those of the query."""
    elsewhere: int | None = None
    """Its place among what another system found."""

    @classmethod
    def of(
        cls,
        line: JsonObject,
        score: float,
        asked: str | None,
        price: str | None,
        *,
        pictured: bool,
        elsewhere: int | None = None,
    ) -> Shown:
        """A card.

        Args:
            line: of an index.
            score: cosine.
            asked: attributes of the query, None if it has none.
            price: column with the price.
            pictured: whether the index has small pictures.
            elsewhere: place among what another system found, from 1.
        """
        extra: dict[str, Any] = dict(line.get("extra") or {})
        url = _address(extra)
        cost = _price(extra, price)
        own = line.get("attributes") or ""
        parts = compare_attributes(own if asked is None else asked, own)[1].parts
        place = f"thumbnails?listing_id={quote(line['listing_id'], safe='')}"
        return cls(
            line["listing_id"],
            line["title"],
            score,
            place if pictured else None,
            cost,
            url,
            tuple((name, text_of(x)[:LONGEST]) for name, x in extra.items()),
            parts,
            elsewhere,
        )


def _taken(extra: dict[str, Any], names: Sequence[str]) -> Any:
    """Take the first column of some names out."""
    known = {x.casefold(): x for x in extra}
    return next((extra.pop(known[x]) for x in names if x in known), None)


def _address(extra: dict[str, Any]) -> str | None:
    found = _taken(extra, ADDRESSES)
    if not isinstance(found, str) or len(found) > 2000:
        return None
    try:
        parts = urlsplit(found.strip())
    except ValueError:
        return None
    return found.strip() if parts.scheme in ("http", "https") and parts.netloc else None


def _price(extra: dict[str, Any], name: str | None) -> str | None:
    cell = extra.pop(name, None) if name is not None else None
    if cell is None:
        return None
    value, currency = number_of(cell), _taken(extra, CURRENCIES)
    text = text_of(cell) if math.isnan(value) else f"{value:,.2f}".removesuffix(".00")
    return f"{text} {currency}"[:LONGEST] if isinstance(currency, str) else text[:LONGEST]


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("afmrl_jax.serving.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fragment(name: str, context: Mapping[str, object]) -> str:
    """A part of the page: `results`, `compared`, `problem` or `start`."""
    return _environment().get_template("parts.html.j2").render(part=name, **context)
