"""Scores of clusters, their intervals and what chance gives."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from afmrl_jax.evaluation.probes import (
    clustering_chance,
    clustering_intervals,
    clustering_scores,
)


def labelled(rng, families):
    """Labels and clusters of families whose members belong together."""
    sizes = rng.integers(3, 9, families)
    groups = np.repeat(np.arange(families), sizes)
    label = rng.integers(0, 8, families)
    home = np.where(rng.random(families) < 0.5, rng.integers(0, 8, families), label)
    stays = rng.random(len(groups)) < 0.6
    clusters = np.where(stays, home[groups], rng.integers(0, 8, len(groups)))
    return label[groups], clusters, groups


@pytest.mark.parametrize(("count", "labels", "clusters"), [
    (60, 4, 5), (10, 1, 1), (10, 1, 3), (10, 3, 1), (300, 40, 80), (8, 8, 8),
])  # fmt: skip
def test_scores_are_scikit_learns(rng, count, labels, clusters):
    one, other = rng.integers(0, labels, count), rng.integers(0, clusters, count)
    found = clustering_scores(one, other)
    assert found["NMI"] == pytest.approx(100 * normalized_mutual_info_score(one, other))
    assert found["ARI"] == pytest.approx(100 * adjusted_rand_score(one, other))
    table = contingency_matrix(one, other)
    assert found["Purity"] == pytest.approx(100 * table.max(0).sum() / count)


def test_purity_by_hand():
    labels = np.array(["a", "a", "b", "b", "b"])
    found = clustering_scores(labels, np.array([0, 0, 0, 1, 1]))
    assert found["Purity"] == pytest.approx(100 * 4 / 5)


@pytest.mark.parametrize("by_family", [False, True])
def test_an_interval_holds_its_own_value(rng, by_family):
    labels, clusters, families = labelled(rng, 60)
    labels = families if by_family else labels
    whole = clustering_scores(labels, clusters)
    found = clustering_intervals(labels, clusters, families, resamples=60)
    for name, (low, high) in found.items():
        assert low < whole[name] < high
    # What it replaces: copies of a family are in one cluster, so that all scores are too high.
    draws = []
    for _ in range(60):
        chosen = rng.integers(0, 60, 60)
        rows = np.concatenate([np.flatnonzero(families == x) for x in chosen])
        draws.append(clustering_scores(labels[rows], clusters[rows])["NMI"])
    assert np.percentile(draws, 2.5) > whole["NMI"]


def test_intervals_cover_what_other_families_would_give():
    rng = np.random.default_rng(3)
    expected = {"NMI": [], "ARI": [], "Purity": []}
    for _ in range(150):
        for name, value in clustering_scores(*labelled(rng, 60)[:2]).items():
            expected[name].append(value)
    inside = dict.fromkeys(expected, 0)
    for seed in range(120):
        found = clustering_intervals(*labelled(rng, 60), resamples=60, seed=seed)
        for name, (low, high) in found.items():
            inside[name] += low <= np.mean(expected[name]) <= high
    for name, count in inside.items():
        assert 0.88 <= count / 120 <= 1.0, name


def test_a_single_family_has_no_interval():
    assert clustering_intervals(np.arange(6) % 2, np.arange(6) % 3, np.zeros(6)) == {}


def test_chance_is_far_above_zero_where_clusters_are_many(rng):
    labels, clusters = np.arange(200) // 2, rng.integers(0, 100, 200)
    found = clustering_chance(labels, clusters)
    assert found["NMI"] > 60
    assert abs(found["ARI"]) < 2
    # The clusters themselves are random.
    for name, value in clustering_scores(labels, clusters).items():
        assert value == pytest.approx(found[name], abs=4)
