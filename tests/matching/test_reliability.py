"""Metrics of probabilities, against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve

from afmrl_jax.matching.reliability import (
    average_precision,
    brier_score,
    calibration_error,
    operating_points,
    reliability_curve,
    threshold_for,
)


@pytest.fixture
def drawn(rng):
    chances = np.round(rng.random(2000) ** 2, 2)  # With ties.
    return rng.random(2000) < chances**1.3, chances, rng.uniform(0.5, 4, 2000)


def test_the_brier_score_is_scikit_learns(drawn):
    same, chances, weights = drawn
    wanted = brier_score_loss(same, chances, sample_weight=weights)
    assert brier_score(same, chances, weights) == pytest.approx(wanted)


def test_the_reliability_curve_is_scikit_learns(drawn):
    same, chances, _ = drawn
    chances = np.clip(chances + 1e-4, 0, 1)  # Which side an edge belongs to is a convention.
    curve = reliability_curve(same, chances, np.ones(len(same)))
    true, predicted = calibration_curve(same, chances, n_bins=10)
    np.testing.assert_allclose([x["true"] for x in curve], true)
    np.testing.assert_allclose([x["predicted"] for x in curve], predicted)
    assert sum(x["pairs"] for x in curve) == len(same)


def test_weights_are_as_many_equal_pairs(drawn):
    same, chances, _ = drawn
    times = np.arange(len(same)) % 3 + 1
    ones = np.ones(times.sum())
    repeated = [np.repeat(x, times) for x in (same, chances)]
    weighted = reliability_curve(same, chances, times.astype(float))
    plain = reliability_curve(*repeated, ones)
    for one, other in zip(weighted, plain, strict=True):
        assert one["true"] == pytest.approx(other["true"])
        assert one["predicted"] == pytest.approx(other["predicted"])
        assert one["weight"] == other["weight"]
    assert calibration_error(weighted) == pytest.approx(calibration_error(plain))
    for precision in (0.4, 0.7, 0.9):
        found = threshold_for(same, chances, times.astype(float), precision)
        assert found == threshold_for(*repeated, ones, precision)


def test_average_precision_is_scikit_learns(drawn):
    same, chances, _ = drawn
    wanted = average_precision_score(same, chances)
    assert average_precision(same, chances, int(same.sum())) == pytest.approx(wanted)
    assert average_precision(same, chances, 2 * int(same.sum())) == pytest.approx(wanted / 2)


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9])
def test_the_threshold_is_the_lowest_of_the_wanted_precision(drawn, precision):
    same, chances, weights = drawn
    found = threshold_for(same, chances, weights, precision)
    shares, _, thresholds = precision_recall_curve(same, chances, sample_weight=weights)
    assert found == thresholds[shares[:-1] >= precision].min()


def test_no_threshold_where_nothing_is_right():
    assert threshold_for(np.zeros(3, bool), np.array([0.9, 0.5, 0.1]), np.ones(3), 0.5) is None
    (point,) = operating_points(np.zeros(3, bool), np.ones(3), np.ones(3), 4, (0.9,))
    assert point == {"precision": 0.9, "threshold": None, "recall": 0}
