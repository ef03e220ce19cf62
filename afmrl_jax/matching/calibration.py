"""From cosine and attributes of a pair to the probability that its listings are one product.

The probability is learned from pairs of families that training has not seen. What scikit-learn fits
is kept as plain numbers, which can be read, stored as JSON and applied without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from afmrl_jax.errors import CatalogueError
from afmrl_jax.matching.candidates import Pairs

Method = Literal["platt", "isotonic"]
FOLDS = 5
FEATURES = ("fisher z of the cosine", "attributes that agree", "attributes that differ")
NEAREST = 1e-6
"""Where the cosine is cut off: beyond, it is rounding."""
FEWEST = 10
"""Pairs of one product, and families that have them, without which nothing is fitted."""


def features_of(pairs: Pairs) -> np.ndarray:
    """What the probability depends on, float64 [n f]; see `FEATURES`.

    Fisher's z, artanh of the cosine, spreads what is crowded near 1, where the decisions are made.
    """
    cosine = np.clip(pairs.cosine.astype(np.float64), NEAREST - 1, 1 - NEAREST)
    columns = [np.arctanh(cosine), pairs.agree.astype(np.float64), pairs.differ.astype(np.float64)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Labelled:
    """Candidate pairs of a catalogue whose products are known, [n] each."""

    pairs: Pairs
    same: np.ndarray
    """bool; one product"""
    related: np.ndarray
    """bool; one family: of these, a larger catalogue has no more for each listing"""
    families: np.ndarray
    """int [n 2]; family of the left and of the right listing"""
    listings: int
    """How many listings the catalogue has."""
    true_pairs: int
    """How many pairs of one product it has, found or not."""

    def weights(self, listings: int) -> np.ndarray:
        """How many pairs each stands for in a catalogue of another size, float64 [n].

        Each listing meets as many of its product and its family as here, but strangers in
        proportion to the listings that are searched.

        Args:
            listings: that are searched.
        """
        ratio = max(listings - 1, 1) / max(self.listings - 1, 1)
        return np.where(self.same | self.related, 1.0, ratio)


@dataclass(frozen=True)
class Calibration:
    """Gives pairs their probabilities."""

    method: Method
    center: tuple[float, ...]
    """Means of the features."""
    scale: tuple[float, ...]
    """Their standard deviations."""
    slopes: tuple[float, ...]
    """Of the logistic regression, for each feature."""
    bias: float
    knots: tuple[tuple[float, float], ...] = ()
    """Isotonic: score and probability, ascending; between them it is linear."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-odds by the logistic regression, float64 [n], of features [n f]."""
        normal = (features - np.array(self.center)) / np.array(self.scale)
        return np.asarray(normal @ np.array(self.slopes) + self.bias)

    def probability(self, pairs: Pairs) -> np.ndarray:
        """Probability that each pair is one product, float64 [n]."""
        scores = self.scores(features_of(pairs))
        if self.method == "platt":
            # The form that overflows for no score.
            return np.exp(-np.logaddexp(0, -scores))
        places, values = np.array(self.knots).T
        return np.interp(scores, places, values)


def fit(labelled: Labelled, listings: int, method: Method = "platt") -> Calibration:
    """Fit a calibration on all pairs.

    `platt` is a logistic regression on the features. `isotonic` fits that on one half of the
    families, and on the other half any ascending curve from its score to the probability, which
    needs more pairs (scikit-learn advises a thousand or more).

    Args:
        labelled: the pairs.
        listings: how many are searched where it will be applied.
        method: see above.

    Raises:
        CatalogueError: too few pairs, of either kind.
    """
    _require_enough(labelled)
    return _fitted(labelled, labelled.weights(listings), np.ones(len(labelled.same), bool), method)


def cross_fitted(labelled: Labelled, listings: int, method: Method = "platt") -> np.ndarray:
    """Probability of each pair by a calibration that saw neither of its families, float64 [n].

    Args:
        labelled: the pairs.
        listings: how many are searched where it will be applied.
        method: see `fit`.

    Raises:
        CatalogueError: too few pairs, of either kind.
    """
    _require_enough(labelled)
    left, right = labelled.families.T
    weights = labelled.weights(listings)
    folds = _folds(labelled, FOLDS)
    out = np.zeros(len(left))
    for number in range(FOLDS):
        asked = folds[left] == number
        learned = (folds[left] != number) & (folds[right] != number)
        if asked.any():
            model = _fitted(labelled, weights, learned, method)
            out[asked] = model.probability(labelled.pairs.take(asked))
    return out


def _folds(labelled: Labelled, count: int) -> np.ndarray:
    """Number of each family's fold, by family; those with pairs of one product are dealt evenly."""
    families = labelled.families
    with_pairs = np.unique(families[labelled.same, 0])
    rest = np.setdiff1d(np.unique(families), with_pairs)
    rng = np.random.default_rng(0)
    out = np.zeros(int(families.max()) + 1, int)
    for names in (with_pairs, rest):
        out[rng.permutation(names)] = np.arange(len(names)) % count
    return out


def _require_enough(labelled: Labelled) -> None:
    positive = int(labelled.same.sum())
    families = len(np.unique(labelled.families[labelled.same, 0]))
    other = int((~labelled.same).sum())
    if min(positive, families, other) < FEWEST:
        raise CatalogueError(
            f"the held-out listings have {positive} pairs of one product in {families} families, "
            f"and {other} other candidates; a probability needs {FEWEST} of each: hold out more "
            "products with two listings or more, or calibrate on another split"
        )


def _fitted(
    labelled: Labelled, weights: np.ndarray, learned: np.ndarray, method: Method
) -> Calibration:
    if method == "platt":
        return _logistic(labelled, weights, learned)
    half = _folds(labelled, 2)[labelled.families[:, 0]]
    base = _logistic(labelled, weights, learned & (half == 0))
    # Imported here, as below: it takes a second, and few commands need it.
    from sklearn.isotonic import IsotonicRegression

    rest = learned & (half == 1)
    scores = base.scores(features_of(labelled.pairs.take(rest)))
    # Nothing is certain that so many pairs say: the ends keep away from 0 and 1 (Laplace's rule).
    same = labelled.same[rest]
    low, high = 1 / (2 + weights[rest][~same].sum()), 1 - 1 / (2 + same.sum())
    curve = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    curve.fit(scores, same.astype(float), sample_weight=weights[rest])
    values = np.clip(curve.y_thresholds_, low, high)
    knots = zip(curve.X_thresholds_.tolist(), values.tolist(), strict=True)
    return Calibration("isotonic", base.center, base.scale, base.slopes, base.bias, tuple(knots))


def _logistic(labelled: Labelled, weights: np.ndarray, learned: np.ndarray) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labelled.same[learned])) < 2:
        raise CatalogueError(
            "some held-out families have all the pairs of one product, or all the others, so that "
            "nothing can be learned without them; hold out more products"
        )
    features = features_of(labelled.pairs.take(learned))
    center, scale = features.mean(0), features.std(0)
    # A feature that never changes, such as agreement without lists, must not divide by nothing.
    scale = np.where(scale > 1e-9, scale, 1.0)
    model = LogisticRegression(max_iter=1000)
    model.fit((features - center) / scale, labelled.same[learned], weights[learned])
    return Calibration(
        "platt",
        tuple(center.tolist()),
        tuple(scale.tolist()),
        tuple(model.coef_[0].tolist()),
        float(model.intercept_[0]),
    )
