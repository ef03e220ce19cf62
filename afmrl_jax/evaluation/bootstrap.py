"""95 % intervals by the bootstrap, resampling whole groups where queries vary together."""

from __future__ import annotations

import numpy as np

AT_ONCE = 1 << 23
"""Numbers of the resampling that are drawn at a time."""

Interval = tuple[float, float, float]


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
        values: by name, [n] each; NaN is left out, from a metric's own mean alone.
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
