"""Cost of approximate search: ScaNN's lists against exact ones, by every metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afmrl_jax.errors import AfmrlError
from afmrl_jax.evaluation.metrics import metric_values
from afmrl_jax.evaluation.ranking import ranked_lists
from afmrl_jax.evaluation.tasks import RETRIEVAL, Task, TaskInputs
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.scann import ScannIndex
from afmrl_jax.retrieval.types import SearchResult
from afmrl_jax.types import JsonObject

K = 10
MOST_QUERIES = 10_000
"""Most queries compared; more would not change the conclusion."""


def _lists(
    found: SearchResult, inputs: TaskInputs, task: Task, chosen: np.ndarray
) -> dict[str, float]:
    """Metrics of a task from the lists of the chosen queries, shares of 1."""
    labels = np.asarray(inputs.labels(task))
    ranked = ranked_lists(
        found.positions,
        found.scores,
        labels[inputs.query_places[chosen]],
        labels[inputs.gallery_places],
        K,
        inputs.own[chosen],
    )
    # Lists are finite, so anything beyond the end has no rank.
    names = [name for name in task.metrics if name != "MRR"]
    values = metric_values(ranked, names)
    return {
        name: float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
        for name, each in values.items()
    }


def _recall(exact: SearchResult, found: SearchResult, own: np.ndarray) -> float:
    """Share of the exact first k that were found, without the query's own listing."""
    shares = []
    for mine, theirs, place in zip(exact.positions, found.positions, own, strict=True):
        wanted = [p for p in mine.tolist() if p != place][:K]
        got = [p for p in theirs.tolist() if p != place][:K]
        shares.append(len({*wanted} & {*got}) / max(len(wanted), 1))
    return float(np.mean(shares))


def scann_effect(
    inputs: TaskInputs, tasks: Sequence[Task] = RETRIEVAL, *, seed: int = 0
) -> JsonObject:
    """Recall of ScaNN, and the retrieval metrics of its lists and of exact lists.

    Args:
        inputs: vectors of one system.
        tasks: retrieval tasks; those without vectors or labels are left out.
        seed: of the choice of queries, if there are more than 10,000.

    Returns:
        In percent: `recall` of the exact first `k` for the first task, `recalls` by task, and
        `metrics` by task and metric with `exact` and `scann`. If ScaNN is not installed, a `recall`
        of None with the `reason`.
    """
    count = len(inputs.query_places)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(count)[:MOST_QUERIES])
    indexes: dict[str, tuple[ExactIndex, ScannIndex]] = {}
    recalls: dict[str, float] = {}
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    searched: dict[tuple[str, str], tuple[SearchResult, SearchResult]] = {}
    for task in tasks:
        query, gallery = getattr(inputs, task.query), getattr(inputs, task.gallery)
        if query is None or gallery is None or inputs.labels(task) is None:
            continue
        views = (task.query, task.gallery)
        if views not in searched:
            if task.gallery not in indexes:
                vectors = gallery[inputs.gallery_places]
                ids = [str(n) for n in range(len(vectors))]
                try:
                    indexes[task.gallery] = ExactIndex(ids, vectors), ScannIndex(ids, vectors)
                except AfmrlError as error:
                    return {"recall": None, "reason": str(error)}
            vectors = query[inputs.query_places[chosen]]
            exact, scann = (x.search(vectors, K + 1) for x in indexes[task.gallery])
            searched[views] = exact, scann
        exact, scann = searched[views]
        recalls[task.name] = round(100 * _recall(exact, scann, inputs.own[chosen]), 2)
        sides = [_lists(x, inputs, task, chosen) for x in (exact, scann)]
        metrics[task.name] = {
            name: {
                side: round(100 * each[name], 2)
                for side, each in zip(("exact", "scann"), sides, strict=True)
            }
            for name in sides[0]
        }
    first = next(iter(recalls.values()), None)
    return {
        "k": K,
        "recall": first,
        "recalls": recalls,
        "n_queries": len(chosen),
        "metrics": metrics,
    }
