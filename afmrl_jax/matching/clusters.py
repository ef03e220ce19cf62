"""Clusters of duplicates, without chains: A like B, B like C, but C nothing like A."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

LARGEST = 1024
"""Listings that are compared with one another; larger sets are first divided at weak pairs."""
TOGETHER = 0.5
"""Least mean probability over all pairs between two parts that are joined."""

Between = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Gives the probability of pairs of listings: places [n] and [n] to float [n]."""


def find_clusters(
    left: np.ndarray, right: np.ndarray, probability: np.ndarray, size: int, between: Between
) -> list[np.ndarray]:
    """Listings that are one product, two or more in each cluster.

    Listings that accepted pairs connect are candidates. Where a set has three or more, it is
    divided by average linkage (`scipy.cluster.hierarchy`): parts are joined only as long as the
    mean probability of all pairs between them, accepted or not, is at least `TOGETHER`.

    Args:
        left: place of a listing of each accepted pair, int [n].
        right: of the other, int [n].
        probability: of each accepted pair, [n].
        size: number of listings.
        between: gives the probability of any pairs.

    Returns:
        Places, ascending; clusters in order of their first.
    """
    out = []
    for members in _sets(left, right, probability, size):
        if len(members) == 2 or len(members) > LARGEST:
            # The latter only where thousands are alike in all that is known of them.
            out.append(members)
        else:
            out += [x for x in _divided(members, between) if len(x) > 1]
    return sorted(out, key=lambda x: int(x[0]))


def _sets(
    left: np.ndarray, right: np.ndarray, probability: np.ndarray, size: int
) -> list[np.ndarray]:
    """Connected sets of two listings or more; those above `LARGEST` lose their weaker pairs."""
    out, waiting = [], [(left, right, probability)]
    while waiting:
        left, right, probability = waiting.pop()
        graph = sparse.coo_matrix((np.ones(len(left)), (left, right)), (size, size))
        _, labels = connected_components(graph, directed=False)
        touched = np.unique(np.concatenate([left, right]))
        order = touched[np.argsort(labels[touched], kind="stable")]
        cuts = np.flatnonzero(np.diff(labels[order])) + 1
        of_pair = labels[left]
        for members in np.split(order, cuts) if len(order) else []:
            if len(members) <= LARGEST:
                out.append(np.sort(members))
                continue
            own = of_pair == labels[members[0]]
            strong = own & (probability > np.median(probability[own]))
            if not strong.any():  # Half or more are equally likely, and nothing is likelier.
                strong = own & (probability > probability[own].min())
            if not strong.any():
                out.append(np.sort(members))
                continue
            waiting.append((left[strong], right[strong], probability[strong]))
    return out


def _divided(members: np.ndarray, between: Between) -> list[np.ndarray]:
    # Imported here: it takes a while, and few commands need it.
    from scipy.cluster.hierarchy import fcluster, linkage

    # Pairs in the order of scipy's condensed matrices.
    one, other = np.triu_indices(len(members), 1)
    distance = 1 - np.asarray(between(members[one], members[other]), np.float64)
    tree = linkage(np.clip(distance, 0, 1), "average")
    labels = fcluster(tree, 1 - TOGETHER, "distance")
    return [members[labels == x] for x in np.unique(labels)]
