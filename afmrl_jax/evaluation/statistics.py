"""Intervals and tests: paired bootstrap, sign flips by family, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

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
