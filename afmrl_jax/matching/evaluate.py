"""Matching on listings whose products are known: labelled candidates, precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.evaluation.statistics import interval
from afmrl_jax.matching.calibration import Calibration, Labelled
from afmrl_jax.matching.candidates import Searched, Side, candidate_blocks, joined, pairs_of
from afmrl_jax.matching.clusters import find_clusters
from afmrl_jax.matching.reliability import (
    average_precision,
    brier_score,
    calibration_error,
    operating_points,
    reliability_curve,
)
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class Truth:
    """What is known of the listings of a catalogue, int [n] each."""

    products: np.ndarray
    """Number of the product, by `Listing.true_product`."""
    families: np.ndarray
    """Number of the family, by `Listing.group`."""

    @classmethod
    def of(cls, listings: Sequence[Listing]) -> Truth:
        """The truth of a catalogue's listings."""
        names = ([x.true_product for x in listings], [x.group for x in listings])
        return cls(*(np.unique(x, return_inverse=True)[1].ravel() for x in names))

    @property
    def true_pairs(self) -> int:
        """How many pairs of listings are one product."""
        counts = np.bincount(self.products)
        return int((counts * (counts - 1) // 2).sum())


def labelled_candidates(side: Side, index: Searched, truth: Truth, k: int) -> Labelled:
    """The candidate pairs of a catalogue, with what is true of them.

    Args:
        side: its listings.
        index: of their vectors.
        truth: of the same listings.
        k: nearest of each listing.
    """
    pairs = joined(list(candidate_blocks(side, side, index, k)), len(side))
    ends = np.stack([pairs.left, pairs.right], axis=1)
    products, families = truth.products[ends], truth.families[ends]
    return Labelled(
        pairs,
        products[:, 0] == products[:, 1],
        families[:, 0] == families[:, 1],
        families,
        len(side),
        truth.true_pairs,
    )


def evaluate_matching(
    side: Side,
    index: Searched,
    truth: Truth,
    calibration: Calibration,
    threshold: float | None,
    k: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> JsonObject:
    """How well matching does on a catalogue that neither training nor calibration has seen.

    Args:
        side: its listings.
        index: of their vectors.
        truth: of the same listings.
        calibration: made for a catalogue of this size.
        threshold: probability from which on a pair is accepted; None accepts none.
        k: nearest of each listing that are candidates.
        resamples: of the bootstrap over families.
        seed: of the bootstrap.

    Returns:
        `precision`, `recall` and `f1` of the accepted pairs, the first two with 95 % intervals;
        `cluster_precision` and `cluster_recall`, of the pairs that share a cluster; how good the
        probabilities are (`brier`, `calibration_error`, `reliability`); `average_precision`; and
        the counts. Recall is over all pairs of one product, candidates or not. A rate of nothing
        is None.
    """
    found = labelled_candidates(side, index, truth, k)
    chances = calibration.probability(found.pairs)
    even, same = np.ones(len(chances)), found.same
    accepted = chances >= threshold if threshold is not None else np.zeros(len(chances), bool)
    families = found.families[:, 0]
    precision = _rate(same[accepted], families[accepted], resamples, seed)
    recall = _rate(*_true_pairs(truth, found.pairs.left[same & accepted]), resamples, seed)
    curve = reliability_curve(same, chances, even)
    return {
        "listings": len(side),
        "candidates": len(chances),
        "true_pairs": found.true_pairs,
        "found_pairs": int(same.sum()),
        "accepted": int(accepted.sum()),
        "threshold": threshold,
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        **_cluster_rates(side, found, chances, accepted, truth, calibration),
        "average_precision": average_precision(same, chances, found.true_pairs),
        "operating_points": operating_points(same, chances, even, found.true_pairs),
        "brier": brier_score(same, chances, even),
        "calibration_error": calibration_error(curve),
        "reliability": curve,
    }


def _true_pairs(truth: Truth, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every pair of one product, whether it was found, bool [n], and its family, int [n].

    Args:
        truth: of the listings.
        hits: a listing of each pair that was found.
    """
    counts = np.bincount(truth.products)
    family_of = np.zeros(len(counts), int)
    family_of[truth.products] = truth.families
    found = np.bincount(truth.products[hits], minlength=len(counts))
    missed = counts * (counts - 1) // 2 - found
    products = np.concatenate([np.repeat(np.arange(len(counts)), x) for x in (found, missed)])
    return np.arange(len(products)) < found.sum(), family_of[products]


def _rate(values: np.ndarray, families: np.ndarray, resamples: int, seed: int) -> JsonObject | None:
    """A share with its interval over families; None of nothing."""
    if not len(values):
        return None
    mean, low, high = interval(values.astype(float), families, resamples=resamples, seed=seed)
    return {"value": mean, "low": low, "high": high}


def _f1(precision: JsonObject | None, recall: JsonObject | None) -> float | None:
    if precision is None or recall is None:
        return None
    total = precision["value"] + recall["value"]
    return 2 * precision["value"] * recall["value"] / total if total else 0.0


def _cluster_rates(
    side: Side,
    found: Labelled,
    chances: np.ndarray,
    accepted: np.ndarray,
    truth: Truth,
    calibration: Calibration,
) -> JsonObject:
    """Precision and recall of the pairs that share a cluster."""
    chosen = found.pairs.take(accepted)
    clusters = find_clusters(
        chosen.left,
        chosen.right,
        chances[accepted],
        len(side),
        lambda a, b: calibration.probability(pairs_of(side, a, side, b)),
    )
    together = right = 0
    for members in clusters:
        counts = np.bincount(truth.products[members])
        together += len(members) * (len(members) - 1) // 2
        right += int((counts * (counts - 1) // 2).sum())
    return {
        "clusters": len(clusters),
        "cluster_precision": right / together if together else None,
        "cluster_recall": right / found.true_pairs if found.true_pairs else None,
    }
