"""Precision and recall of matching, against a loop over all pairs."""

import numpy as np
import pytest

from afmrl_jax.matching.calibration import fit
from afmrl_jax.matching.candidates import pairs_of
from afmrl_jax.matching.evaluate import evaluate_matching, labelled_candidates
from tests.matching.world import draw_world

K = 15


def test_rates_are_those_of_all_pairs():
    held_out = labelled_candidates(*draw_world(0), K)
    side, index, truth = draw_world(1, families=15)
    model = fit(held_out, len(side))
    found = evaluate_matching(side, index, truth, model, 0.6, K, resamples=50)
    left, right = np.triu_indices(len(side), 1)
    chances = model.probability(pairs_of(side, left, side, right))
    same = truth.products[left] == truth.products[right]
    accepted = chances >= 0.6
    assert found["true_pairs"] == same.sum()
    assert found["accepted"] == accepted.sum()
    precision, recall = same[accepted].mean(), accepted[same].mean()
    assert found["precision"]["value"] == pytest.approx(precision)
    assert found["recall"]["value"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    for name in ("precision", "recall"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["cluster_precision"] > 0.8
    assert found["cluster_recall"] > 0.5


def test_with_no_threshold_nothing_is_accepted():
    side, index, truth = draw_world(1, families=15)
    model = fit(labelled_candidates(side, index, truth, K), len(side))
    found = evaluate_matching(side, index, truth, model, None, K, resamples=20)
    assert found["precision"] is None
    assert found["recall"]["value"] == 0
    assert (found["clusters"], found["cluster_precision"]) == (0, None)
