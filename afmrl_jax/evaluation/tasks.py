"""The task list: one row of the results table from the embeddings of one system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from afmrl_jax.evaluation.bootstrap import interval, paired_difference
from afmrl_jax.evaluation.classification import classify
from afmrl_jax.evaluation.clustering import cluster, clustering_intervals, clustering_scores
from afmrl_jax.evaluation.metrics import average_precision, positive_ranks, recall_at_k

KS = (1, 5, 10)
PerQuery = dict[str, np.ndarray]


@dataclass(frozen=True)
class TaskInputs:
    """Unit vectors of the test listings in three views, and what is known of them.

    `both` holds picture, title and, where the system uses them, attributes; `text` the title (and
    attributes); `image` the picture alone. All [n d].
    """

    both: np.ndarray
    text: np.ndarray
    image: np.ndarray
    products: np.ndarray
    families: np.ndarray
    categories: np.ndarray | None = None
    """[n], or None where the catalogue has none."""
    train: np.ndarray | None = None
    """[m d], the `both` view of the train listings, for classification."""
    train_categories: np.ndarray | None = None


def _recalls(query: np.ndarray, gallery: np.ndarray, products: np.ndarray, task: str) -> PerQuery:
    """Hits of each listing as a query against all others; NaN for one without positives."""
    ranks = positive_ranks(query, gallery, products, products, np.arange(len(query)))
    out = {}
    for k in KS:
        hits = np.full(len(ranks), np.nan)
        hits[ranks > 0] = recall_at_k(ranks, k)
        out[f"{task}.R@{k}"] = hits
    return out


def per_query_values(inputs: TaskInputs) -> PerQuery:
    """Every per-query value of a row, by `task.metric`, all [n]."""
    products = inputs.products
    out = _recalls(inputs.both, inputs.both, products, "fine")
    out |= _recalls(inputs.text, inputs.image, products, "text_to_image")
    out |= _recalls(inputs.image, inputs.both, products, "image_to_multimodal")
    if inputs.categories is not None:
        own = np.arange(len(products))
        labels = inputs.categories
        values = average_precision(inputs.both, inputs.both, labels, labels, KS, own)
        out |= {f"coarse.{name}": value for name, value in values.items()}
        if inputs.train is not None and inputs.train_categories is not None:
            right = classify(inputs.train, inputs.train_categories, inputs.both, labels)
            out["classification.accuracy"] = right
    return out


def evaluate_row(
    name: str, inputs: TaskInputs, *, seed: int, resamples: int = 2000
) -> tuple[dict[str, Any], PerQuery]:
    """One row of `evaluation.json`, in percent, and its per-query values.

    Intervals resample families, because the queries of a family are easy or hard together.
    """
    values = per_query_values(inputs)
    row: dict[str, Any] = {"name": name}
    bounds: dict[str, Any] = {}
    for key, query_values in values.items():
        task, metric = key.split(".", 1)
        mean, low, high = interval(query_values, inputs.families, resamples=resamples, seed=seed)
        row.setdefault(task, {})[metric] = round(100 * mean, 2)
        bounds.setdefault(task, {})[metric] = [round(100 * low, 2), round(100 * high, 2)]
    if inputs.categories is None:
        row |= {"coarse": None, "classification": None, "clustering": None}
    else:
        labels = inputs.categories
        found = cluster(inputs.both, len(np.unique(labels)), seed)
        scores = clustering_scores(labels, found)
        row["clustering"] = {k: round(v, 2) for k, v in scores.items()}
        spread = clustering_intervals(labels, found, resamples=min(resamples, 200), seed=seed)
        bounds["clustering"] = {k: [round(v, 2) for v in pair] for k, pair in spread.items()}
        row.setdefault("classification", None)
    queries = int(np.isfinite(values["fine.R@1"]).sum())
    return row | {
        "intervals": bounds,
        "n_queries": queries,
        "n_gallery": len(inputs.products),
        "seed": seed,
    }, values


def compare_rows(
    before: PerQuery, after: PerQuery, families: np.ndarray, *, seed: int, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """Paired differences (after - before, in points) with 95 % intervals, by `task.metric`."""
    out = {}
    for key in before:
        if key in after:
            found = paired_difference(
                before[key], after[key], families, resamples=resamples, seed=seed
            )
            out[key] = {
                name: round(100 * value, 2)
                for name, value in zip(("difference", "low", "high"), found, strict=True)
            }
    return out
