"""Intervals, clustering and classification."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from afmrl_jax.evaluation import statistics
from afmrl_jax.evaluation.probes import classify
from afmrl_jax.evaluation.statistics import (
    interval,
    intervals,
    paired_difference,
    sign_flip_p_value,
)


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


def test_metrics_that_share_resamples_have_the_intervals_of_each_alone(rng, monkeypatch):
    groups = rng.integers(0, 9, 40)
    values = {name: rng.random(40) for name in "abc"}
    values["b"][3:7] = np.nan
    values["none"] = np.full(40, np.nan)
    found = intervals(values, groups, resamples=300, seed=4)
    assert list(found) == ["a", "b", "c", "none"]
    for name in "abc":
        assert found[name] == pytest.approx(interval(values[name], groups, resamples=300, seed=4))
    assert np.isnan(found["none"]).all()
    # Draws are those of one call, however many are made at a time.
    monkeypatch.setattr(statistics, "AT_ONCE", 70)
    assert intervals(values, groups, resamples=300, seed=4)["a"] == pytest.approx(found["a"])


@pytest.mark.parametrize("count", [3, 8, 11])
def test_few_clusters_are_counted_as_scipy_counts_them(rng, count):
    for scale in (0.0, 0.4):
        differences = rng.normal(scale, 1.0, count).round(1)
        expected = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip_p_value(differences) == pytest.approx(expected.pvalue, abs=1e-9)


def test_families_flip_as_wholes(rng):
    groups = np.repeat(np.arange(7), [1, 4, 2, 2, 3, 1, 5])
    differences = rng.normal(0.3, 1.0, len(groups))
    differences[4] = np.nan
    sums = [np.nansum(differences[groups == x]) for x in range(7)]
    expected = stats.permutation_test(
        (np.array(sums),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p_value(differences, groups) == pytest.approx(expected.pvalue, abs=1e-9)


def test_many_clusters_are_drawn_near_to_the_exact_value(rng, monkeypatch):
    differences = rng.normal(0.45, 1.0, 13)
    exact = sign_flip_p_value(differences)
    monkeypatch.setattr(statistics, "EXACT", 0)
    drawn = sign_flip_p_value(differences, permutations=20_000, seed=1)
    error = np.sqrt(exact * (1 - exact) / 20_000)
    assert drawn == pytest.approx(exact, abs=4 * error)
    assert drawn == sign_flip_p_value(differences, permutations=20_000, seed=1)
    # The order seen is one of them: p is never 0.
    assert sign_flip_p_value(np.ones(200), permutations=99) == 1 / 100


def test_no_difference_is_no_evidence():
    assert sign_flip_p_value(np.zeros(30)) == 1.0
    assert np.isnan(sign_flip_p_value(np.full(3, np.nan)))
    # Half the hits won, half lost.
    assert sign_flip_p_value(np.array([1.0, -1.0] * 20)) > 0.9


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(25), 4)
    found = []
    for seed in range(200):
        noise = rng.normal(size=25)[groups] + rng.normal(size=100)
        found.append(sign_flip_p_value(noise, groups, permutations=199, seed=seed))
    assert stats.kstest(found, "uniform").pvalue > 0.01
