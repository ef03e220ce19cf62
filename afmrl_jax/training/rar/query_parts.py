"""Which reward queries RAR learns from, which choose its best generator, and which report on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError

LEARN, CHOOSE, REPORT = "learn", "choose", "report"
"""Parts of the reward split, where a catalogue names them."""


class QueryParts(NamedTuple):
    """Numbers of the queries' listings, disjoint by family."""

    learn: np.ndarray
    choose: np.ndarray
    report: np.ndarray
    """May be empty."""


def divide_queries(
    listings: Sequence[Listing], queries: np.ndarray, settings: RarConfig, seed: int
) -> QueryParts:
    """The queries of the three parts.

    A catalogue may say which is which by the `part` of its reward listings; otherwise families are
    drawn by `held_out_share` and `report_share`.

    Args:
        listings: all of the gallery.
        queries: those that may be asked, [n].
        settings: of the stage.
        seed: of the run.

    Raises:
        CatalogueError: there are too few families to divide.
    """
    parts = np.array([listings[int(i)].part or "" for i in queries])
    named = QueryParts(*(queries[parts == x] for x in (LEARN, CHOOSE, REPORT)))
    if len(named.learn) and len(named.choose):
        return named
    own = np.array([family_of(listings[int(i)]) for i in queries])
    families = sorted(set(own.tolist()))
    needed = 3 if settings.report_share else 2
    if len(families) < needed:
        raise CatalogueError(
            f"rar needs reward queries of {'three' if needed == 3 else 'two'} families or more, "
            f"found {len(families)}; give the `reward` split more products with at least two "
            "listings each" + (", or set --rar.report-share 0" if needed == 3 else "")
        )
    order = [families[i] for i in np.random.default_rng([seed, 5]).permutation(len(families))]
    reported = 0
    if settings.report_share:
        reported = max(1, round(settings.report_share * len(families)))
        reported = min(reported, len(families) - 2)
    size = max(1, round(settings.held_out_share * len(families)))
    size = min(size, len(families) - reported - 1)
    held, told = (np.isin(own, x) for x in (order[:size], order[size : size + reported]))
    return QueryParts(queries[~held & ~told], queries[held], queries[told])


def never_learned(listings: Sequence[Listing]) -> np.ndarray:
    """Numbers of the listings outside the part that RAR trains on, whatever their split."""
    return np.array([n for n, x in enumerate(listings) if x.part != LEARN], np.int64)


def family_of(listing: Listing) -> str:
    """The family of a listing; that of its product where it has none."""
    return listing.family_id or listing.product_id
