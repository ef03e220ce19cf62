"""Intervals and tests: paired bootstrap, sign flips by family, Holm, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afmrl_jax.types import JsonObject

Interval = tuple[float, float, float]
"""Mean, lower and upper end."""
AT_ONCE = 1 << 23
"""Numbers of the resampling that are drawn at a time."""


def group_sums(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values over their groups, and how many values each group has, float64 [g] both.

    Args:
        values: [n].
        groups: [n], labels; None makes every value a group.
    """
    if groups is None:
        return values, np.ones(len(values))
    _, inverse = np.unique(groups, return_inverse=True)
    return np.bincount(inverse, values), np.bincount(inverse).astype(float)


def intervals(
    values: dict[str, np.ndarray],
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """`interval` of several metrics of the same queries, which share the resamples.

    Args:
        values: by name, [n] each; NaN is excluded, only from that metric's mean.
        groups: [n], labels (families) to resample as wholes; None resamples single values.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    by_mask: dict[bytes, list[str]] = {}
    for name, each in values.items():
        by_mask.setdefault(np.isfinite(each).tobytes(), []).append(name)
    out: dict[str, Interval] = {}
    for mask, names in by_mask.items():
        kept = np.frombuffer(mask, bool)
        if not kept.any():
            out |= dict.fromkeys(names, (float("nan"),) * 3)
            continue
        chosen = None if groups is None else groups[kept]
        pairs = [group_sums(np.asarray(values[name], float)[kept], chosen) for name in names]
        sums, sizes = np.stack([x for x, _ in pairs], axis=1), pairs[0][1]
        means = _resampled(sums, sizes, resamples, seed)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        middle = sums.sum(0) / sizes.sum()
        for name, *found in zip(names, middle.tolist(), low.tolist(), high.tolist(), strict=True):
            out[name] = (found[0], found[1], found[2])
    return {name: out[name] for name in values}


def _resampled(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of resampled groups, [resamples, metrics]."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    share = np.full(count, 1 / count)
    step = max(AT_ONCE // count, 1)
    parts = []
    for begin in range(0, resamples, step):
        draws = rng.multinomial(count, share, size=min(step, resamples - begin)).astype(float)
        parts.append(draws @ sums / (draws @ sizes)[:, None])
    return np.concatenate(parts)


def interval(
    values: np.ndarray, groups: np.ndarray | None = None, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of per-query values with its 95 % percentile interval: (mean, low, high).

    Args:
        values: [n]; NaN is left out.
        groups: [n], labels (families) to resample as wholes; None resamples single values.
        resamples: bootstrap samples.
        seed: of the resampling.

    Reference: Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13; Field & Welsh,
    Bootstrapping clustered data, 2007.
    """
    return intervals({"": values}, groups, resamples=resamples, seed=seed)[""]


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of after - before on the same queries, with its 95 % interval."""
    return interval(after - before, groups, resamples=resamples, seed=seed)


EXACT = 14
"""Number of clusters up to which all sign assignments are enumerated."""


def sign_flip_p_value(
    differences: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean difference under exchangeability of the two systems.

    If they were exchangeable, the sign of every difference would be a coin flip. Queries of a
    family are easy or hard together, so there is one coin per family. Up to 14 families all
    assignments are enumerated; beyond, random ones are drawn and the observed one is counted among
    them, so p is never 0.

    Example:
        >>> sign_flip_p_value(np.array([0.1, 0.2, 0.3]))
        0.25

    Args:
        differences: [n], after less before of each query; NaN is left out.
        groups: [n], labels of families; None gives every query its own coin.
        permutations: random assignments of signs.
        seed: of the drawing.

    Returns:
        p; NaN where no query has a difference.

    Reference: Smucker, Allan & Carterette, A comparison of statistical significance tests for
    information retrieval evaluation, CIKM 2007; Phipson & Smyth, Permutation p-values should never
    be zero, 2010.
    """
    kept = np.isfinite(differences)
    if not kept.any():
        return float("nan")
    sums, _ = group_sums(
        np.asarray(differences, float)[kept], None if groups is None else groups[kept]
    )
    # A family without a difference has no sign to flip.
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(float(sums.sum()))
    # The same sum, added in another order, must count as equal.
    limit = observed - 1e-12 * float(np.abs(sums).sum())
    if len(sums) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        return float((np.abs(signs @ sums) >= limit).mean())
    rng = np.random.default_rng(seed)
    step = max(AT_ONCE // len(sums), 1)
    reached = 0
    for begin in range(0, permutations, step):
        size = (min(step, permutations - begin), len(sums))
        flips = rng.integers(0, 2, size, dtype=np.int8)
        # sum of s_i (1 - 2 f_i)
        drawn = sums.sum() - 2 * (flips.astype(float) @ sums)
        reached += int((np.abs(drawn) >= limit).sum())
    return (1 + reached) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of tests that belong together, corrected so that all claims hold at once.

    Claiming every corrected value below 0.05 makes a false claim among all of them with a
    probability of at most 5 %, whatever their dependence.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]

    Args:
        p_values: of each test; NaN is a test that could not be made, and does not count.

    Returns:
        In the same order; NaN stays NaN.

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    values = np.asarray(p_values, float)
    made = np.flatnonzero(np.isfinite(values))
    order = made[np.argsort(values[made], kind="stable")]
    out = np.full(len(values), np.nan)
    weighted = values[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(np.maximum.accumulate(weighted), 1.0)
    found: list[float] = out.tolist()
    return found


class Crossed(NamedTuple):
    """A mean over seeds and families, both taken as samples."""

    mean: float
    low: float
    high: float
    error: float
    """Standard error."""
    p: float
    """Two-sided, of a true mean of zero."""


def crossed(values: np.ndarray, groups: np.ndarray) -> Crossed:
    """Mean of per-query values of several seeds, for other seeds and other families.

    Seeds and families are crossed: each seed was judged on the same families. Resampling seeds and
    families independently (the pigeonhole bootstrap) estimates the variance of such a mean, but it
    counts the interaction of seed and family three times, which here is most of the variance, and
    its percentiles are too narrow for five seeds. So the three variances that it adds up are
    computed directly, the surplus interaction is taken off, and the quantile is Student's, with
    Satterthwaite's degrees of freedom.

    Args:
        values: [s n], of s seeds; a query with NaN under any seed is left out.
        groups: [n], labels (families).

    Raises:
        ValueError: fewer than two seeds, or fewer than two families with a query.

    Reference: Owen, The pigeonhole bootstrap, 2007; Cameron, Gelbach & Miller, Robust inference
    with multiway clustering, 2011 (the larger of the one-way variances as the least: MacKinnon,
    Nielsen & Webb, 2021).
    """
    from scipy import stats  # Takes a second to import, and most commands do not need it.

    kept = np.isfinite(values).all(0)
    _, inverse = np.unique(groups[kept], return_inverse=True)
    sums = np.stack([np.bincount(inverse, row) for row in values[:, kept]])
    seeds, families = sums.shape
    if seeds < 2 or families < 2:
        raise ValueError(f"{seeds} seeds and {families} families: two of each are needed")
    sizes = np.bincount(inverse)
    by_seed = sums.sum(1) / sizes.sum()
    mean = float(by_seed.mean())
    # What each seed and family adds to the sum beyond its seed's mean, then beyond its family's.
    within = sums - by_seed[:, None] * sizes
    of_family = within.mean(0)
    interaction = within - of_family
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_families = families / (families - 1) * float((of_family**2).sum()) / sizes.sum() ** 2
    both = seeds * families / ((seeds - 1) * (families - 1))
    both *= float((interaction**2).sum()) / (seeds * sizes.sum()) ** 2
    variance = max(of_seeds + of_families - both, of_seeds, of_families)
    if variance == 0:
        return Crossed(mean, mean, mean, 0.0, 1.0 if mean == 0 else 0.0)
    freedom = variance**2 / (
        of_seeds**2 / (seeds - 1)
        + of_families**2 / (families - 1)
        + both**2 / ((seeds - 1) * (families - 1))
    )
    error = variance**0.5
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Crossed(mean, mean - half, mean + half, error, p)


def spread(values: Sequence[float]) -> JsonObject:
    """Mean, standard deviation between seeds and the 95 % interval of the mean (Student's t).

    Args:
        values: one figure per seed, at least one.

    Returns:
        `mean` and `values`, and with two or more seeds `deviation`, `low` and `high`; rounded to
        thousandths.
    """
    from scipy import stats  # Takes a second to import, and most commands do not need it.

    array = np.asarray(values, float)
    mean = float(array.mean())
    out: JsonObject = {"mean": round(mean, 3), "values": [round(v, 3) for v in array.tolist()]}
    if len(array) > 1:
        deviation = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(array) - 1)) * deviation / len(array) ** 0.5
        out |= {"deviation": round(deviation, 3)}
        out |= {"low": round(mean - half, 3), "high": round(mean + half, 3)}
    return out


def verdict(found: JsonObject) -> str:
    """Verdict on a difference over seeds, from its interval by `spread`."""
    if "low" not in found:
        return "one seed says nothing"
    if found["low"] > 0:
        return "holds"
    return "reversed" if found["high"] < 0 else "not shown"
