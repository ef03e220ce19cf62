"""Intervals, clustering and classification."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from afmrl_jax.evaluation.bootstrap import interval, paired_difference
from afmrl_jax.evaluation.classification import classify
from afmrl_jax.evaluation.clustering import cluster, clustering_scores, purity


def test_interval_of_independent_values_is_the_normal_one(rng):
    values = (rng.random(2000) < 0.3).astype(float)
    mean, low, high = interval(values, resamples=4000)
    error = np.sqrt(mean * (1 - mean) / len(values))
    assert mean == values.mean()
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_interval_widens_where_groups_vary_together(rng):
    groups = np.repeat(np.arange(40), 25)
    values = (rng.random(40) < 0.5).astype(float)[groups]
    _, low, high = interval(values, groups)
    _, narrow_low, narrow_high = interval(values)
    assert high - low > 4 * (narrow_high - narrow_low)


def test_missing_values_are_left_out():
    assert interval(np.array([1.0, np.nan, 1.0]))[0] == 1.0
    assert np.isnan(interval(np.array([np.nan]))[0])


def test_pairing_removes_what_both_have_in_common(rng):
    before = rng.normal(size=300) * 10
    mean, low, high = paired_difference(before, before + 1)
    assert mean == pytest.approx(1)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)


def test_clustering_scores_are_scikit_learns(clustered):
    vectors, _, _, categories = clustered
    found = cluster(vectors, 4, seed=0)
    scores = clustering_scores(categories, found)
    majority = [np.bincount(categories[found == c]).max() for c in np.unique(found)]
    assert scores["NMI"] == pytest.approx(100 * normalized_mutual_info_score(categories, found))
    assert scores["ARI"] == pytest.approx(100 * adjusted_rand_score(categories, found))
    assert scores["Purity"] == pytest.approx(100 * sum(majority) / len(found))


def test_purity_by_hand():
    labels = np.array(["a", "a", "b", "b", "b"])
    assert purity(labels, np.array([0, 0, 0, 1, 1])) == pytest.approx(4 / 5)


def test_classifier_is_a_standardised_logistic_regression(clustered):
    vectors, _, _, categories = clustered
    train, test = np.arange(60) % 2 == 0, np.arange(60) % 2 == 1
    mean, deviation = vectors[train].mean(0), vectors[train].std(0)
    scaled = (vectors - mean) / deviation
    twin = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[train], categories[train])
    found = classify(vectors[train], categories[train], vectors[test], categories[test])
    assert found.mean() == pytest.approx(twin.score(scaled[test], categories[test]))


def test_category_that_training_never_saw_counts_as_wrong(clustered):
    vectors, _, _, categories = clustered
    known = categories < 3
    found = classify(vectors[known], categories[known], vectors, categories)
    assert (found[~known] == 0).all()


def test_a_single_training_category_is_always_predicted(clustered):
    vectors, _, _, categories = clustered
    only = categories == 1
    found = classify(vectors[only], categories[only], vectors, categories)
    np.testing.assert_array_equal(found, only.astype(float))
