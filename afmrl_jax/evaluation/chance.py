"""What a random ranking scores: beside a value near zero it says whether anything was learned."""

from __future__ import annotations

import numpy as np

from afmrl_jax.evaluation.tasks import TASKS, PerQuery, TaskInputs

CHANCE = "chance"
"""Name of the random ranking where it stands among systems."""


def random_recall(positives: int, candidates: int, k: int) -> float:
    """Probability that a random ranking has a positive in its first k.

    Example:
        >>> random_recall(1, 4, 1)
        0.25

    Args:
        positives: among the candidates, at least one.
        candidates: listings that are ranked.
        k: first places that count.
    """
    return 1 - float(_no_hit_before(positives, candidates)[min(k, candidates)])


def random_reciprocal_rank(positives: int, candidates: int) -> float:
    """Expected reciprocal rank of the first positive in a random ranking.

    Example:
        >>> random_reciprocal_rank(1, 2)
        0.75
    """
    missed = _no_hit_before(positives, candidates)
    return float(((missed[:-1] - missed[1:]) / np.arange(1, candidates + 1)).sum())


def _no_hit_before(positives: int, candidates: int) -> np.ndarray:
    """Probability that the first n places hold no positive, for n from 0 to all, [candidates + 1].

    It is the product over places of (the negatives left) / (the candidates left).
    """
    places = np.arange(candidates)
    shares = np.maximum(candidates - positives - places, 0) / (candidates - places)
    return np.concatenate([[1.0], np.cumprod(shares)])


def chance_values(inputs: TaskInputs) -> PerQuery:
    """R@k and MRR that a random ranking is expected to have for each query, by `task.metric`.

    Args:
        inputs: labels and roles; vectors are not used, but a task without its views is left out.

    Returns:
        [n] each; NaN for listings that are not queried or have no positive.
    """
    queries, gallery = inputs.query_places, inputs.gallery_places
    out: PerQuery = {}
    for task in TASKS:
        labels = inputs.labels(task)
        if task.kind != "retrieval" or labels is None or not inputs.has_views(task):
            continue
        names, codes = np.unique(labels, return_inverse=True)
        itself = inputs.own >= 0
        positives = np.bincount(codes[gallery], minlength=len(names))[codes[queries]] - itself
        candidates = len(gallery) - itself
        pairs, place = np.unique(np.stack([positives, candidates]), axis=1, return_inverse=True)
        for metric in task.metrics:
            kind, _, k = metric.partition("@")
            if kind not in ("R", "MRR"):
                continue
            expected = [
                float("nan")
                if p == 0
                else random_recall(p, m, int(k))
                if kind == "R"
                else random_reciprocal_rank(p, m)
                for p, m in pairs.T.tolist()
            ]
            values = np.full(len(inputs), np.nan)
            values[queries] = np.array(expected)[place.reshape(-1)]
            out[f"{task.name}.{metric}"] = values
    return out
