"""Clusters: connected, without chains, and bounded."""

import numpy as np

from afmrl_jax.matching import clusters
from afmrl_jax.matching.clusters import find_clusters


def between(groups, *, same=0.95, other=0.02):
    groups = np.asarray(groups)
    return lambda a, b: np.where(groups[a] == groups[b], same, other)


def lists(found):
    return [x.tolist() for x in found]


def found(pairs, size, chances, probability=None):
    left, right = np.array(pairs).T
    probability = np.full(len(pairs), 0.9) if probability is None else np.array(probability)
    return lists(find_clusters(left, right, probability, size, chances))


def test_what_belongs_together_is_together():
    groups = [0, 0, 1, 1, 1, 2]
    assert found([(0, 1), (2, 3), (3, 4)], 6, between(groups)) == [[0, 1], [2, 3, 4]]


def test_one_wrong_pair_does_not_join_two_products():
    groups = [0, 0, 0, 1, 1, 1]
    pairs = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5)]
    assert found(pairs, 6, between(groups)) == [[0, 1, 2], [3, 4, 5]]


def test_a_chain_of_near_twins_is_cut():
    """Each is like its neighbours and nothing like the others."""
    size = 12
    pairs = [(n, n + 1) for n in range(size - 1)]
    parts = found(pairs, size, lambda a, b: np.where(np.abs(a - b) <= 1, 0.9, 0.01))
    assert max(map(len, parts)) <= 2


def test_no_pairs_no_clusters():
    nothing = np.zeros(0, int)
    assert find_clusters(nothing, nothing, np.zeros(0), 5, between(range(5))) == []


def test_large_sets_are_divided_at_their_weakest_pairs_first(monkeypatch):
    monkeypatch.setattr(clusters, "LARGEST", 8)
    groups = np.repeat(np.arange(4), 5)
    pairs, strength = [], []
    for g in range(4):
        own = np.flatnonzero(groups == g)
        pairs += [(a, b) for a in own for b in own if a < b]
        strength += [0.99] * 10
    pairs += [(4, 5), (9, 10), (14, 15)]
    strength += [0.6] * 3
    seen = []

    def judged(a, b):
        seen.append(len(a))
        return between(groups)(a, b)

    assert found(pairs, 20, judged, strength) == [
        np.flatnonzero(groups == g).tolist() for g in range(4)
    ]
    assert max(seen) <= 8 * 7 // 2


def test_thousands_of_equal_listings_are_one_cluster_and_no_table(monkeypatch):
    monkeypatch.setattr(clusters, "LARGEST", 8)
    pairs = [(n, n + 1) for n in range(19)]

    def never(a, b):
        raise AssertionError("too many to compare")

    assert found(pairs, 20, never, [1.0] * 19) == [list(range(20))]
