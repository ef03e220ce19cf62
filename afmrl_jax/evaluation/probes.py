"""Category information in frozen vectors: a linear classifier, and clusters."""

from __future__ import annotations

import warnings

import numpy as np


def classify(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> np.ndarray:
    """Whether each test listing's category is predicted, float64 [n].

    A category that never occurs in training cannot be predicted and counts as wrong.

    Args:
        train: [m d].
        train_labels: [m].
        test: [n d].
        test_labels: [n].
    """
    if len(np.unique(train_labels)) < 2:
        return (test_labels == train_labels[0]).astype(float)
    # Imported here, because it takes seconds and most commands do not need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=0.1, max_iter=300)
    with warnings.catch_warnings():
        # Stopping at max_iter is part of the definition here, not a fault to report.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train), train_labels)
    return (model.predict(scaler.transform(test)) == test_labels).astype(float)


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
