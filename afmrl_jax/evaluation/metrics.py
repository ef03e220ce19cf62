"""Retrieval metrics per query, from the ranks of the positives; values are fractions of 1.

A metric is named by its kind and its cutoff, as in `R@10`; some have no cutoff.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from afmrl_jax.evaluation.ranking import Ranked, VectorScorer, rank_gallery


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Whether a positive is among the first k, float64 [q]; queries without positives excluded."""
    return (ranks[ranks > 0] <= k).astype(float)


def positive_ranks(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Rank of the best positive of each query, int64 [q]; 0 where there is none.

    Ties count against the query: a negative with the positive's score ranks before it.

    Args:
        query: [q d].
        gallery: [m d].
        query_labels: [q]; equal labels are positives.
        gallery_labels: [m].
        own: [q], place of the query's own listing in the gallery, which is excluded.
    """
    labels = (query_labels, gallery_labels)
    (found,) = rank_gallery(VectorScorer(query, gallery), [labels], 1, own)
    return found.rank


def _hit(ranked: Ranked, k: int) -> np.ndarray:
    return ranked.hits[:, :k].any(1).astype(float)


def _precision(ranked: Ranked, k: int) -> np.ndarray:
    return ranked.hits[:, :k].sum(1) / k


def _summed_precision(ranked: Ranked, cut: np.ndarray) -> np.ndarray:
    """Precision summed at the hits of the first `cut` [q] places."""
    width = ranked.hits.shape[1]
    hits = ranked.hits & (np.arange(width) < cut[:, None])
    return (np.cumsum(hits, axis=1) / np.arange(1, width + 1) * hits).sum(1)


def _average_precision(ranked: Ranked, k: int) -> np.ndarray:
    summed = _summed_precision(ranked, np.full(len(ranked.rank), k))
    return summed / np.maximum(np.minimum(k, ranked.positives), 1)


def _m5_cut(ranked: Ranked, k: int) -> np.ndarray:
    return np.minimum(np.minimum(k, ranked.judged), ranked.length)


def _m5_hits(ranked: Ranked, cut: np.ndarray) -> np.ndarray:
    return (ranked.hits & (np.arange(ranked.hits.shape[1]) < cut[:, None])).sum(1)


def _m5_average_precision(ranked: Ranked, k: int) -> np.ndarray:
    cut = _m5_cut(ranked, k)
    return _summed_precision(ranked, cut) / np.maximum(_m5_hits(ranked, cut), 1)


def _m5_precision(ranked: Ranked, k: int) -> np.ndarray:
    cut = _m5_cut(ranked, k)
    return _m5_hits(ranked, cut) / np.maximum(cut, 1)


def _ndcg(ranked: Ranked, k: int) -> np.ndarray:
    discounts = 1.0 / np.log2(np.arange(2, ranked.hits.shape[1] + 2))
    gained = (ranked.hits[:, :k] * discounts[:k]).sum(1)
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])
    return gained / ideal[np.minimum(np.minimum(k, ranked.positives), len(discounts))]


AT_K: dict[str, Callable[[Ranked, int], np.ndarray]] = {
    "R": _hit,
    "Prec": _precision,
    "mAP": _average_precision,
    "map_m5": _m5_average_precision,
    "prec_m5": _m5_precision,
    "nDCG": _ndcg,
}


def depth(names: Sequence[str]) -> int:
    """How many first places the metrics need, at least one.

    Raises:
        ValueError: a metric of that name is not known.
    """
    return max([1, *(k for _, k in map(_parsed, names))])


def _parsed(name: str) -> tuple[str, int]:
    if name == "MRR":
        return name, 0
    kind, _, k = name.partition("@")
    if kind not in AT_K or not k.isdigit() or int(k) < 1:
        known = ", ".join(f"{x}@k" for x in AT_K)
        raise ValueError(f"unknown metric {name!r}; known are {known} and MRR")
    return kind, int(k)


def metric_values(ranked: Ranked, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics of each query by name, float64 [q] each.

    * `R@k`: 1 where a positive is among the first k.
    * `Prec@k`: share of positives among the first k.
    * `mAP@k`: precision summed at the hits in the first k, over min(k, positives).
    * `nDCG@k`: gains of 1, discounted by log2(1 + place), over the best possible.
    * `MRR`: one over the rank of the best positive, however far down.
    * `map_m5@k`: average precision of M5Product's own evaluation: of the first
      min(k, listings of the label, list length), where the listings of the label are all that were
      judged, the query itself among them; the sum is divided by the number of hits, 0 without.
    * `prec_m5@k`: hits in that many places over that number.

    A query without positives has no value (NaN), except that M5's two count it as 0, as there.

    Reference: Dong et al., M5Product, CVPR 2022, and the evaluation code of its authors.

    Raises:
        ValueError: an unknown name, or a k beyond the places that were ranked.
    """
    if depth(names) > ranked.hits.shape[1]:
        raise ValueError(f"metrics need {depth(names)} places, {ranked.hits.shape[1]} were ranked")
    out = {}
    for name in names:
        kind, k = _parsed(name)
        mrr = kind == "MRR"
        values = 1.0 / np.maximum(ranked.rank, 1) if mrr else AT_K[kind](ranked, k)
        answerable = (ranked.positives > 0) | kind.endswith("_m5")
        out[name] = np.where(answerable, values, np.nan)
    return out


def retrieval_values(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    names: Sequence[str],
    own: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of each query by name, see `metric_values`, from vectors.

    Args:
        query: [q d].
        gallery: [m d].
        query_labels: [q]; equal labels are positives.
        gallery_labels: [m].
        names: as in `mAP@10`.
        own: [q], place of the query's own listing in the gallery, which is excluded; -1 if it is
            not there.
    """
    labels = (query_labels, gallery_labels)
    (found,) = rank_gallery(VectorScorer(query, gallery), [labels], depth(names), own)
    return metric_values(found, names)


def macro(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over labels of the mean of each label's queries; NaN is left out.

    The plain mean over queries is the micro average, which gives frequent labels more weight.

    Example:
        >>> macro(np.array([1.0, 1.0, 0.0]), np.array(["chair", "chair", "lamp"]))
        0.5
    """
    kept = np.isfinite(values)
    if not kept.any():
        return float("nan")
    _, inverse = np.unique(labels[kept], return_inverse=True)
    return float((np.bincount(inverse, values[kept]) / np.bincount(inverse)).mean())
