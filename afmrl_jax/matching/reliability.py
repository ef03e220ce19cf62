"""How good probabilities of pairs are, and which of them to accept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afmrl_jax.types import JsonObject

BINS = 10
POINTS = (0.8, 0.9, 0.95, 0.98, 0.99)
"""Wanted precisions of which recall is told."""


def brier_score(same: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean square of what probabilities [n] differ from the truth, bool [n]."""
    return float(np.average((probability - same) ** 2, weights=weights))


def reliability_curve(
    same: np.ndarray, probability: np.ndarray, weights: np.ndarray, bins: int = BINS
) -> list[JsonObject]:
    """Predicted and true shares of one product, in bins of equal width; empty bins are left out.

    Args:
        same: whether a pair is one product, bool [n].
        probability: predicted, [n].
        weights: how many pairs each stands for, [n].
        bins: how many.

    Returns:
        `low`, `high` (bounds of the bin), `predicted`, `true`, `pairs` (seen) and `weight`.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)
    out = []
    for number in np.unique(place).tolist():
        here = place == number
        total = float(weights[here].sum())
        out.append(
            {
                "low": round(float(edges[number]), 4),
                "high": round(float(edges[number + 1]), 4),
                "predicted": float(np.average(probability[here], weights=weights[here])),
                "true": float(np.average(same[here], weights=weights[here])),
                "pairs": int(here.sum()),
                "weight": total,
            }
        )
    return out


def calibration_error(curve: Sequence[JsonObject]) -> float:
    """Mean distance of predicted and true shares over the bins, by weight."""
    total = sum(x["weight"] for x in curve)
    return float(sum(x["weight"] * abs(x["predicted"] - x["true"]) for x in curve) / total)


def threshold_for(
    same: np.ndarray, probability: np.ndarray, weights: np.ndarray, precision: float
) -> float | None:
    """The lowest probability from which on pairs are right as often as wanted; None if none is.

    Args:
        same: whether a pair is one product, bool [n].
        probability: predicted, [n].
        weights: how many pairs each stands for, [n].
        precision: wanted share.

    Example:
        >>> same, chances = np.array([True, True, False, True]), np.array([0.9, 0.8, 0.7, 0.2])
        >>> [threshold_for(same, chances, np.ones(4), wanted) for wanted in (0.9, 0.7)]
        [0.8, 0.2]
    """
    order = np.argsort(-probability, kind="stable")
    right = np.cumsum((weights * same)[order])
    share = right / np.cumsum(weights[order])
    chances = probability[order]
    # Pairs of one probability are accepted together.
    last = np.append(chances[1:] != chances[:-1], True)
    fit = np.flatnonzero(last & (share >= precision))
    return float(chances[fit[-1]]) if len(fit) else None


def operating_points(
    same: np.ndarray,
    probability: np.ndarray,
    weights: np.ndarray,
    true_pairs: int,
    wanted: Sequence[float] = POINTS,
) -> list[JsonObject]:
    """What each wanted precision costs: its threshold, and the recall there.

    Args:
        same: whether a pair is one product, bool [n].
        probability: predicted, [n].
        weights: how many pairs each stands for, [n].
        true_pairs: all pairs of one product, found or not.
        wanted: precisions.
    """
    out = []
    for precision in wanted:
        at = threshold_for(same, probability, weights, precision)
        found = 0 if at is None else int((same & (probability >= at)).sum())
        out.append({"precision": precision, "threshold": at, "recall": found / max(true_pairs, 1)})
    return out


def average_precision(same: np.ndarray, probability: np.ndarray, true_pairs: int) -> float:
    """Mean precision at each pair of one product, best first; those not found count as 0.

    Args:
        same: whether a pair is one product, bool [n].
        probability: predicted, [n].
        true_pairs: all pairs of one product, found or not.
    """
    order = np.argsort(-probability, kind="stable")
    chances, right = probability[order], np.cumsum(same[order])
    last = np.append(chances[1:] != chances[:-1], True) if len(order) else np.zeros(0, bool)
    precision = right[last] / (np.flatnonzero(last) + 1)
    gained = np.diff(right[last], prepend=0)
    return float((precision * gained).sum() / max(true_pairs, 1))
