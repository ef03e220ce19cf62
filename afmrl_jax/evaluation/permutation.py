"""Whether two systems differ on the same queries: the paired permutation test."""

from __future__ import annotations

import numpy as np

from afmrl_jax.evaluation.bootstrap import AT_ONCE, group_sums

EXACT = 14
"""Clusters up to which all assignments of signs are counted."""


def sign_flip_p_value(
    differences: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean difference, were the two systems exchangeable.

    If they were, the sign of every difference would be a coin's. Queries of a family are easy or
    hard together, so that a family has one coin. Up to 14 families all assignments are counted;
    beyond, random ones are drawn, and the one observed is counted among them, so that p is never 0.

    Example:
        >>> sign_flip_p_value(np.array([0.1, 0.2, 0.3]))
        0.25

    Args:
        differences: [n], after less before of each query; NaN is left out.
        groups: [n], labels of families; None gives every query a coin of its own.
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
    # The same sum in another order of adding must count as equal.
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
