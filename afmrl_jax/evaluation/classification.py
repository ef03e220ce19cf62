"""Category prediction from frozen embeddings by logistic regression."""

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
    # Here, for it takes seconds to import, and most commands do without.
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
