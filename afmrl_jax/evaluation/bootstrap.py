"""95 % intervals by the bootstrap, resampling whole groups where queries vary together."""

from __future__ import annotations

import numpy as np


def _group_sums(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if groups is None:
        return values, np.ones(len(values))
    _, inverse = np.unique(groups, return_inverse=True)
    return np.bincount(inverse, values), np.bincount(inverse).astype(float)


def interval(
    values: np.ndarray, groups: np.ndarray | None = None, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of per-query values with its 95 % percentile interval: (mean, low, high).

    Args:
        values: [n]; NaN is left out.
        groups: [n], labels (families) to resample as wholes; None resamples single values.
        resamples: bootstrap samples.
        seed: of the resampling.

    Reference: Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13; Field & Welsh,
    Bootstrapping clustered data, 2007.
    """
    kept = np.isfinite(values)
    if not kept.any():
        return float("nan"), float("nan"), float("nan")
    sums, sizes = _group_sums(
        np.asarray(values, float)[kept], None if groups is None else groups[kept]
    )
    rng = np.random.default_rng(seed)
    count = len(sums)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    means: np.ndarray = np.divide(np.dot(draws, sums), np.dot(draws, sizes))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sums.sum()) / float(sizes.sum()), float(low), float(high)


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of after - before on the same queries, with its 95 % interval."""
    return interval(after - before, groups, resamples=resamples, seed=seed)
