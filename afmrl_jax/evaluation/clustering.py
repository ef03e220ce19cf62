"""Clustering of frozen embeddings by k-means, against the categories."""

from __future__ import annotations

import numpy as np

# scikit-learn takes seconds to import and most commands do without, so functions import it.


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of items in the majority category of their cluster."""
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters)
    return float(np.amax(table, axis=0).sum() / len(labels))


def cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means labels, int [n]."""
    from sklearn.cluster import KMeans

    return KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)


def clustering_scores(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """NMI (arithmetic mean), ARI and purity, in percent."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "NMI": 100 * float(normalized_mutual_info_score(labels, clusters)),
        "ARI": 100 * float(adjusted_rand_score(labels, clusters)),
        "Purity": 100 * purity(labels, clusters),
    }


def clustering_intervals(
    labels: np.ndarray, clusters: np.ndarray, *, resamples: int = 200, seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals over the items of a fixed clustering."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"NMI": [], "ARI": [], "Purity": []}
    for _ in range(resamples):
        chosen = rng.integers(len(labels), size=len(labels))
        for name, value in clustering_scores(labels[chosen], clusters[chosen]).items():
            found[name].append(value)
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in found.items()}
