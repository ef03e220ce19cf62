"""Training views: what the two sides of the pairs of a step show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from afmrl_jax.config import ViewShares
from afmrl_jax.types import Modality

PERIOD = 20
"""Steps in which each view has its share: to the step where it is a multiple of 1/20, and within
one step otherwise."""
Sides = tuple[Modality, Modality]
"""What queries show, and what candidates do."""
_View = TypeVar("_View")


def view_of(step: int, shares: ViewShares, seed: int) -> Sides:
    """The view of all pairs of a step, a function of (seed, step).

    Example:
        >>> views = [view_of(step, ViewShares(text_image=0.25), seed=0) for step in range(40)]
        >>> views.count(("text", "image"))
        10
    """
    return drawn(step, shares.by_sides, seed) if shares.used else ("both", "both")


def drawn(step: int, shares: Mapping[_View, float], seed: int) -> _View:
    """One of several views, each for its share of the steps.

    Systematic sampling: 20 equally spaced points, from an offset that is drawn anew, fall on the
    shares laid end to end, and the steps of a period take them in random order. So the shares hold
    over any run of a few periods, and not only on average.

    Args:
        step: from 0 on.
        shares: of each view; they add up to 1.
        seed: decides the order.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, step // PERIOD, 4]))
    offset, order = rng.random(), rng.permutation(PERIOD)
    point = (order[step % PERIOD] + offset) / PERIOD
    views, widths = zip(*shares.items(), strict=True)
    # The last bound may be less than 1 by rounding.
    place = np.searchsorted(np.cumsum(widths)[:-1], point, side="right")
    found: _View = views[int(place)]
    return found
