"""Training views: what the two sides of the pairs of a step show."""

from __future__ import annotations

import numpy as np

from afmrl_jax.config import ViewShares
from afmrl_jax.types import Modality

PERIOD = 20
"""Steps in which each view has its share: to the step where it is a multiple of 1/20, and within
one step otherwise."""
Sides = tuple[Modality, Modality]
"""What queries show, and what candidates do."""


def view_of(step: int, shares: ViewShares, seed: int) -> Sides:
    """The view of all pairs of a step, a function of (seed, step).

    Systematic sampling: 20 equally spaced points, from an offset that is drawn anew, fall on the
    shares laid end to end, and the steps of a period take them in random order. So the shares hold
    over any run of a few periods, and not only on average.

    Example:
        >>> views = [view_of(step, ViewShares(text_image=0.25), seed=0) for step in range(40)]
        >>> views.count(("text", "image"))
        10
    """
    if not shares.used:
        return "both", "both"
    rng = np.random.default_rng(np.random.SeedSequence([seed, step // PERIOD, 4]))
    offset, order = rng.random(), rng.permutation(PERIOD)
    point = (order[step % PERIOD] + offset) / PERIOD
    sides, widths = zip(*shares.by_sides.items(), strict=True)
    # The last bound may be less than 1 by rounding.
    place = np.searchsorted(np.cumsum(widths)[:-1], point, side="right")
    return sides[int(place)]
