"""The task list as data, and a row of the results table from the embeddings of one system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from afmrl_jax.evaluation.metrics import depth, macro, metric_values
from afmrl_jax.evaluation.probes import (
    RESTARTS,
    classify,
    cluster,
    clustering_chance,
    clustering_intervals,
    clustering_scores,
)
from afmrl_jax.evaluation.ranking import Scorer, VectorScorer, rank_gallery
from afmrl_jax.evaluation.statistics import intervals
from afmrl_jax.types import JsonObject, Modality

PerQuery = dict[str, np.ndarray]

RECALL = ("R@1", "R@5", "R@10")
PRECISION = ("Prec@1", "Prec@5", "Prec@10")
M5 = ("map_m5@1", "map_m5@5", "map_m5@10", "prec_m5@1", "prec_m5@5", "prec_m5@10")
CATEGORIES_SHOWN = 20
MOST_DISTANCES = 30_000_000
"""Listings times clusters beyond which the finer clusterings, minutes a row, are left out."""
BY_CATEGORY = ("fine.R@1", "fine.R@10", "coarse.mAP@10", "classification.accuracy")


@dataclass(frozen=True)
class Task:
    """Which vectors are queried against which, and what counts as a positive."""

    name: str
    query: Modality
    gallery: Modality
    label: Literal["product", "category", "type", "family"]
    """What a query shares with its positives, or what clusters are compared with."""
    metrics: tuple[str, ...]
    kind: Literal["retrieval", "classification", "clustering"] = "retrieval"

    def named(self) -> list[str]:
        """Its metrics as `task.metric`."""
        return [f"{self.name}.{metric}" for metric in self.metrics]


TASKS = (
    Task(
        "fine", "both", "both", "product",
        (*RECALL, *PRECISION, "mAP@10", "nDCG@10", "MRR", *M5),
    ),
    Task(
        "coarse", "both", "both", "category",
        ("mAP@1", "mAP@5", "mAP@10", *PRECISION, "nDCG@10", "MRR", *M5),
    ),
    Task("text_to_image", "text", "image", "product", (*RECALL, *PRECISION, "MRR", *M5)),
    Task("image_to_multimodal", "image", "both", "product", (*RECALL, *PRECISION, "MRR", *M5)),
    Task("image_to_image", "image", "image", "product", (*RECALL, *PRECISION, "MRR", *M5)),
    Task("classification", "both", "both", "category", ("accuracy",), "classification"),
    Task("clustering", "both", "both", "category", ("NMI", "ARI", "Purity"), "clustering"),
    Task("clustering_type", "both", "both", "type", ("NMI", "ARI", "Purity"), "clustering"),
    Task("clustering_family", "both", "both", "family", ("NMI", "ARI", "Purity"), "clustering"),
)  # fmt: skip
"""Neighbours with the same views share one pass over the gallery."""
RETRIEVAL = tuple(task for task in TASKS if task.kind == "retrieval")


@dataclass(frozen=True)
class TaskInputs:
    """Unit vectors of the evaluated listings in three views, and their labels.

    `both` holds picture, title and, if the system uses them, attributes; `text` only the title and
    `image` only the picture, each with the attributes written from it alone, if any. All [n d];
    None if a system has no such view, and then its tasks are skipped.
    """

    both: np.ndarray | None
    text: np.ndarray | None
    image: np.ndarray | None
    products: np.ndarray
    families: np.ndarray
    categories: np.ndarray | None = None
    """[n], or None if the catalogue has none."""
    types: np.ndarray | None = None
    """[n], the true attribute `type`, or None if any listing lacks it."""
    train: np.ndarray | None = None
    """[m d], the `both` view of the train listings, for classification."""
    train_categories: np.ndarray | None = None
    queries: np.ndarray | None = None
    """Places of the listings that are queries, ascending; None for all."""
    gallery: np.ndarray | None = None
    """Places of the listings that are searched, ascending; None for all."""
    scorer: Scorer | None = None
    """Scores of queries against the gallery instead of vectors in `both`."""

    def __len__(self) -> int:
        return len(self.products)

    @property
    def query_places(self) -> np.ndarray:
        """Places of the queries, int64 [q]."""
        return np.arange(len(self)) if self.queries is None else self.queries

    @property
    def gallery_places(self) -> np.ndarray:
        """Places of the gallery's listings, int64 [m]."""
        return np.arange(len(self)) if self.gallery is None else self.gallery

    @property
    def own(self) -> np.ndarray:
        """Place of each query in the gallery, -1 if it is not in it, int64 [q]."""
        place = np.full(len(self), -1)
        place[self.gallery_places] = np.arange(len(self.gallery_places))
        return place[self.query_places]

    def scores(self, query: Modality, gallery: Modality) -> Scorer | None:
        """Scores of queries in one view against the gallery in another; None without a view."""
        if query == gallery == "both" and self.scorer is not None:
            return self.scorer
        one, other = getattr(self, query), getattr(self, gallery)
        if one is None or other is None:
            return None
        return VectorScorer(
            one if self.queries is None else one[self.queries],
            other if self.gallery is None else other[self.gallery],
        )

    def labels(self, task: Task) -> np.ndarray | None:
        """The labels of the task, [n]; None if the catalogue has none.

        Where every product is a family of its own, the catalogue has no families.
        """
        if task.label == "family":
            grouped = len(np.unique(self.families)) < len(np.unique(self.products))
            return self.families if grouped else None
        known = {"product": self.products, "category": self.categories, "type": self.types}
        return known[task.label]

    def has_views(self, task: Task) -> bool:
        """Whether there are vectors or scores for both sides of the task."""
        if task.query == task.gallery == "both" and self.scorer is not None:
            return True
        return getattr(self, task.query) is not None and getattr(self, task.gallery) is not None


def _shared(tasks: Sequence[Task], inputs: TaskInputs) -> Iterator[tuple[Scorer, list[Task]]]:
    """The possible retrieval tasks, grouped by the scores they share."""
    able = [x for x in tasks if x.kind == "retrieval" and inputs.labels(x) is not None]
    for (query, gallery), group in groupby(able, key=lambda x: (x.query, x.gallery)):
        scorer = inputs.scores(query, gallery)
        if scorer is not None:
            yield scorer, list(group)


def per_query_values(inputs: TaskInputs, tasks: Sequence[Task] = TASKS) -> PerQuery:
    """All per-query values of a row, by `task.metric`, [n] each; NaN for listings not queried."""
    out: PerQuery = {}
    queries, gallery = inputs.query_places, inputs.gallery_places
    for scorer, group in _shared(tasks, inputs):
        labels = [np.asarray(inputs.labels(task)) for task in group]
        sets = [(x[queries], x[gallery]) for x in labels]
        k = max(depth(task.metrics) for task in group)
        found = rank_gallery(scorer, sets, k, inputs.own)
        for task, ranked in zip(group, found, strict=True):
            for key, values in zip(
                task.named(), metric_values(ranked, task.metrics).values(), strict=True
            ):
                out[key] = np.full(len(inputs), np.nan)
                out[key][queries] = values
    if any(task.kind == "classification" for task in tasks):
        out |= _classified(inputs)
    return out


def _classified(inputs: TaskInputs) -> PerQuery:
    missing = (inputs.both, inputs.train, inputs.categories, inputs.train_categories)
    if any(x is None for x in missing):
        return {}
    both, train, categories, train_categories = (np.asarray(x) for x in missing)
    return {"classification.accuracy": classify(train, train_categories, both, categories)}


def _percent(value: float) -> float:
    return round(100 * value, 2)


def mean_values(values: PerQuery) -> dict[str, dict[str, float]]:
    """Means over queries in percent, by task and metric; a metric without queries is left out."""
    out: dict[str, dict[str, float]] = {}
    for key, each in values.items():
        task, metric = key.split(".", 1)
        found = each[np.isfinite(each)]
        if len(found):
            out.setdefault(task, {})[metric] = _percent(float(found.mean()))
    return out


def by_category(values: PerQuery, categories: np.ndarray, queries: np.ndarray) -> JsonObject:
    """A few metrics by the query's category: the 20 with most queries, then all others.

    Returns:
        By category, means over queries in percent, with the number of queries.
    """
    names, counts = np.unique(categories[queries], return_counts=True)
    shown = names[np.lexsort((names, -counts))][:CATEGORIES_SHOWN]
    groups = {str(name): categories == name for name in shown}
    if len(shown) < len(names):
        groups[f"other ({len(names) - len(shown)} categories)"] = ~np.isin(categories, shown)
    asked = np.zeros(len(categories), bool)
    asked[queries] = True
    out: JsonObject = {}
    for name, mask in groups.items():
        out[name] = {"queries": int((mask & asked).sum())}
        for key in (x for x in BY_CATEGORY if x in values):
            found = values[key][mask & np.isfinite(values[key])]
            out[name][key] = _percent(float(found.mean())) if len(found) else None
    return out


def evaluate_row(
    name: str,
    inputs: TaskInputs,
    *,
    seed: int,
    resamples: int = 2000,
    tasks: Sequence[Task] = TASKS,
) -> tuple[JsonObject, PerQuery]:
    """One row of `evaluation.json`, in percent, and its per-query values.

    The values under a task's name are means over queries (micro); those under `macro` are means
    over the task's labels, products or categories, of each label's mean. Intervals are for the
    means over queries, and resample families, because the queries of a family are easy or hard
    together.
    """
    values = per_query_values(inputs, tasks)
    row: JsonObject = {"name": name} | {task.name: None for task in tasks}
    found = intervals(values, inputs.families, resamples=resamples, seed=seed)
    bounds: JsonObject = {}
    macros: JsonObject = {}
    for task in tasks:
        keys = [key for key in task.named() if key in values]
        metrics = [key.split(".", 1)[1] for key in keys]
        if not keys:
            continue
        row[task.name] = {m: _percent(found[key][0]) for m, key in zip(metrics, keys, strict=True)}
        bounds[task.name] = {
            m: [_percent(x) for x in found[key][1:]] for m, key in zip(metrics, keys, strict=True)
        }
        labels = np.asarray(inputs.labels(task))
        macros[task.name] = {
            m: _percent(macro(values[key], labels)) for m, key in zip(metrics, keys, strict=True)
        }
    row |= {"macro": macros, "intervals": bounds}
    for task in tasks:
        if task.kind == "clustering":
            _cluster(row, task, inputs, seed, resamples)
    if inputs.categories is not None:
        row["per_category"] = by_category(values, inputs.categories, inputs.query_places)
    answered = values.get("fine.R@1", next(iter(values.values()), np.empty(0)))
    return row | {
        "n_queries": int(np.isfinite(answered).sum()),
        "n_gallery": len(inputs.gallery_places),
        "seed": seed,
    }, values


def _cluster(row: JsonObject, task: Task, inputs: TaskInputs, seed: int, resamples: int) -> None:
    """Add the scores of k-means with as many clusters as labels, their intervals, and chance's."""
    labels = inputs.labels(task)
    if labels is None or inputs.both is None:
        return
    count, fine = len(np.unique(labels)), task.label != "category"
    if fine and count * len(labels) > MOST_DISTANCES:
        return
    found = cluster(inputs.both, count, seed, 1 if fine else RESTARTS)
    bounds = clustering_intervals(
        labels, found, inputs.families, resamples=min(resamples, 200), seed=seed
    )
    row[task.name] = {k: round(v, 2) for k, v in clustering_scores(labels, found).items()}
    if bounds:
        row["intervals"][task.name] = {k: [round(v, 2) for v in x] for k, x in bounds.items()}
    chance = clustering_chance(labels, found, seed=seed)
    row.setdefault("chance", {})[task.name] = {k: round(v, 2) for k, v in chance.items()}


def compare_rows(
    before: PerQuery, after: PerQuery, families: np.ndarray, *, seed: int, resamples: int = 2000
) -> dict[str, dict[str, float]]:
    """Paired differences (after - before, in points) with 95 % intervals, by `task.metric`."""
    both = {key: after[key] - before[key] for key in before if key in after}
    found = intervals(both, families, resamples=resamples, seed=seed)
    return {
        key: dict(zip(("difference", "low", "high"), map(_percent, each), strict=True))
        for key, each in found.items()
    }
