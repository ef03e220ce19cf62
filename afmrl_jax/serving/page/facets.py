"""What the listings of an index can be filtered by on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from afmrl_jax.data.attributes.text_format import salvaged_pairs
from afmrl_jax.runs.living.filters import ATTRIBUTES, number_of
from afmrl_jax.types import JsonObject

SAMPLE = 2000
"""Listings that are looked at."""
MOST = 300
"""Pairs that are offered; any other can be written as a condition."""
PRICES = ("price", "sale_price", "amount", "cost")
"""Names of columns with a price, best first; letters' case does not matter."""


@dataclass(frozen=True)
class Facets:
    """Attribute pairs with the number of listings that have them, most frequent first, and the
    column with prices.
    """

    pairs: tuple[tuple[str, str, int], ...] = ()
    price: str | None = None
    """None: no listing has a price."""

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What is offered, by key, each with the condition that it stands for."""
        return [
            (f"{key}: {value} ({count})", f"{ATTRIBUTES}{key}={value}")
            for key, value, count in sorted(self.pairs, key=lambda x: (x[0], -x[2], x[1]))
        ]


def facets_of(lines: Iterable[JsonObject]) -> Facets:
    """The facets of some listings.

    Example:
        >>> line = {"attributes": "color: red", "extra": {"Price": "9.90"}}
        >>> facets_of([line]).choices, facets_of([line]).price
        ([('color: red (1)', 'attributes.color=red')], 'Price')
    """
    counts, columns = Counter[tuple[str, str]](), dict[str, None]()
    for line in lines:
        counts.update(salvaged_pairs(line.get("attributes") or ""))
        extra = line.get("extra") or {}
        # Not a number: a price on request.
        columns |= {x: None for x, cell in extra.items() if number_of(cell) == number_of(cell)}
    named = {x.casefold(): x for x in columns}
    price = next((named[x] for x in PRICES if x in named), None)
    return Facets(tuple((*pair, count) for pair, count in counts.most_common(MOST)), price)
