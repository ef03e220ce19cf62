"""Retrieval metrics against scikit-learn and against the definitions, written out."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from afmrl_jax.evaluation.metrics import average_precision, positive_ranks, recall_at_k


@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_with_one_positive_a_query_is_scikit_learns_top_k_accuracy(rng, k):
    gallery = rng.normal(size=(9, 4))
    labels = np.arange(9)
    query_labels = rng.integers(0, 9, 40)
    query = gallery[query_labels] + rng.normal(size=(40, 4))
    ranks = positive_ranks(query, gallery, query_labels, labels)
    expected = top_k_accuracy_score(query_labels, query @ gallery.T, k=k, labels=labels)
    assert recall_at_k(ranks, k).mean() == pytest.approx(expected)


def test_full_average_precision_is_scikit_learns(clustered):
    vectors, products, _, _ = clustered
    own = np.arange(len(vectors))
    found = average_precision(vectors, vectors, products, products, [59], own)["mAP@59"]
    for i in range(len(vectors)):
        rest = np.arange(len(vectors)) != i
        truth = (products == products[i])[rest]
        expected = average_precision_score(truth, (vectors @ vectors[i])[rest])
        assert found[i] == pytest.approx(expected)


def literal_ap(labels, label, k):
    """Precision summed at hits over min(k, positives); `labels` in ranked order."""
    hits, total = 0, 0.0
    for place, x in enumerate(labels[:k], 1):
        if x == label:
            hits += 1
            total += hits / place
    return total / min(k, sum(x == label for x in labels))


def literal_m5(labels, label, k):
    """M5Product's variant: positives include the query, the sum is over the hits found."""
    k = min(k, sum(x == label for x in labels) + 1, len(labels))
    hits, total = 0, 0.0
    for place, x in enumerate(labels[:k], 1):
        if x == label:
            hits += 1
            total += hits / place
    return total / hits if hits else 0.0


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_both_average_precisions_at_k_are_the_definitions(clustered, k):
    vectors, _, _, categories = clustered
    own = np.arange(len(vectors))
    found = average_precision(vectors, vectors, categories, categories, [k], own)
    for i in range(len(vectors)):
        order = [j for j in np.argsort(-(vectors @ vectors[i])) if j != i]
        ranked = categories[order].tolist()
        assert found[f"mAP@{k}"][i] == pytest.approx(literal_ap(ranked, categories[i], k))
        assert found[f"map_m5@{k}"][i] == pytest.approx(literal_m5(ranked, categories[i], k))


def test_own_listing_is_excluded():
    vectors = np.eye(3)
    labels = np.array([0, 0, 1])
    ranks = positive_ranks(vectors, vectors, labels, labels, np.arange(3))
    assert ranks.tolist() == [2, 2, 0]  # Tied with the negative; the last has no positive.


def test_ties_count_against_the_query():
    same = np.ones((4, 2))
    labels = np.array([0, 0, 1, 2])
    assert positive_ranks(same[:1], same, labels[:1], labels, np.array([0])).tolist() == [3]
    found = average_precision(same[:1], same, labels[:1], labels, [1, 3], np.array([0]))
    assert found["mAP@1"] == 0
    assert found["mAP@3"] == pytest.approx(1 / 3)


def test_blocks_do_not_change_the_result(clustered, monkeypatch):
    vectors, products, _, _ = clustered
    own = np.arange(len(vectors))
    whole = positive_ranks(vectors, vectors, products, products, own)
    monkeypatch.setattr("afmrl_jax.evaluation.metrics.BLOCK", 7)
    np.testing.assert_array_equal(positive_ranks(vectors, vectors, products, products, own), whole)
