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


RESTARTS = 4
"""Starts of k-means, of which the best counts."""
SHUFFLES = 20
LEFT_OUT = 4
"""A fourth of the families is left out at a time; see `clustering_intervals`."""


def cluster(vectors: np.ndarray, count: int, seed: int, restarts: int = RESTARTS) -> np.ndarray:
    """k-means labels, int [n]."""
    from sklearn.cluster import KMeans

    return KMeans(count, n_init=restarts, random_state=seed).fit_predict(vectors)


class _Pairs:
    """The pairs of label and cluster that occur, to count some of the items again and again.

    The scores are scikit-learn's, without its checks of every call.
    """

    def __init__(self, labels: np.ndarray, clusters: np.ndarray):
        label, cluster = (np.unique(x, return_inverse=True)[1] for x in (labels, clusters))
        # By cluster, so that the pairs of a cluster are neighbors.
        codes, self._pair = np.unique(cluster * (label.max() + 1) + label, return_inverse=True)
        self._label, self._cluster = codes % (label.max() + 1), codes // (label.max() + 1)
        self._begin = np.flatnonzero(np.diff(self._cluster, prepend=-1))

    def scores(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """NMI (arithmetic mean), ARI and purity of the chosen items, in percent."""
        cells = np.bincount(self._pair[chosen], minlength=len(self._label)).astype(float)
        total = cells.sum()
        rows, columns = (np.bincount(x, cells) for x in (self._label, self._cluster))
        information = _entropy(rows) + _entropy(columns)
        shared = information - _entropy(cells)
        within, by_row, by_column = (float((x * (x - 1)).sum()) for x in (cells, rows, columns))
        expected = by_row * by_column / float(max(total * (total - 1), 1.0))
        most = (by_row + by_column) / 2
        majority = np.maximum.reduceat(cells, self._begin).sum()
        return {
            "NMI": 100 * (2 * shared / information if information > 0 else 1.0),
            "ARI": 100 * ((within - expected) / (most - expected) if most > expected else 1.0),
            "Purity": 100 * float(majority / total),
        }


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return -float((shares * np.log(shares)).sum())


def clustering_scores(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """NMI (arithmetic mean), ARI and purity, in percent.

    Args:
        labels: [n].
        clusters: [n].
    """
    return _Pairs(labels, clusters).scores()


def clustering_chance(
    labels: np.ndarray, clusters: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """Scores of clusters of the same sizes filled at random.

    With many small clusters NMI and purity are far above zero by chance.
    """
    rng = np.random.default_rng(seed)
    found = [clustering_scores(labels, rng.permutation(clusters)) for _ in range(SHUFFLES)]
    return {name: float(np.mean([x[name] for x in found])) for name in found[0]}


def clustering_intervals(
    labels: np.ndarray,
    clusters: np.ndarray,
    families: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % intervals of a fixed clustering's scores, for other families; empty for one family.

    A bootstrap would draw some families twice, and copies of a listing are trivially in one
    cluster: all its scores lie above the one of the data. So families are left out, a fourth of
    them at a time, drawn without replacement, and the spread of what remains is scaled to the whole
    (the delete-d jackknife). The interval is symmetric about the score of the data.

    Args:
        labels: [n].
        clusters: [n].
        families: [n], what is left out as wholes.
        resamples: sets of families that are left out.
        seed: of drawing them.

    Reference: Shao & Wu, A general theory for jackknife variance estimation, 1989.
    """
    _, inverse = np.unique(families, return_inverse=True)
    count = int(inverse.max()) + 1
    if count < 2:
        return {}
    out = -(-count // LEFT_OUT)
    rng = np.random.default_rng(seed)
    pairs, found = _Pairs(labels, clusters), dict[str, list[float]]()
    for _ in range(resamples):
        kept = np.ones(count, bool)
        kept[rng.permutation(count)[:out]] = False
        chosen = kept[inverse]
        for name, value in pairs.scores(chosen).items():
            found.setdefault(name, []).append(value)
    whole = pairs.scores()
    scale = ((count - out) / out) ** 0.5
    halves = {name: 1.96 * scale * float(np.std(values)) for name, values in found.items()}
    return {name: [whole[name] - half, whole[name] + half] for name, half in halves.items()}
