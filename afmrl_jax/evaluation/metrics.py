"""Retrieval metrics per query: Recall@k and mean average precision in two definitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 512


def _blocks(
    query: np.ndarray, gallery: np.ndarray, own: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Scores block by block, a query's own listing at minus infinity."""
    for begin in range(0, len(query), BLOCK):
        part = slice(begin, begin + BLOCK)
        scores = query[part] @ gallery.T
        if own is not None:
            scores[np.arange(len(scores)), own[part]] = -np.inf
        yield part, scores


def positive_ranks(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Rank of the best positive of each query, int64 [q]; 0 where there is none.

    Ties count against the query: a negative with the positive's score stands before it.

    Args:
        query: [q d].
        gallery: [m d].
        query_labels: [q]; equal labels are positives.
        gallery_labels: [m].
        own: [q], place of the query's own listing in the gallery, which takes no part.
    """
    ranks = np.zeros(len(query), np.int64)
    for part, scores in _blocks(query, gallery, own):
        same = query_labels[part][:, None] == gallery_labels[None, :]
        usable = same & np.isfinite(scores)
        best = np.where(usable, scores, -np.inf).max(1, keepdims=True)
        above = ((scores >= best) & ~same).sum(1)
        ranks[part] = np.where(usable.any(1), 1 + above, 0)
    return ranks


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Whether a positive is among the first k, float64 [q]; queries without positives left out."""
    return (ranks[ranks > 0] <= k).astype(float)


def _worst_case_order(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Places by falling score; among equal scores negatives come first."""
    return np.lexsort((same, -scores), axis=-1)


def average_precision(
    query: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    ks: Sequence[int],
    own: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """AP@k of each query in two definitions, float64 [q] each (NaN without positives).

    * `mAP@k`: precision summed at the hits in the first k, over min(k, positives).
    * `map_m5@k`: as in M5Product's evaluation: positives include the query itself, k is cut to
      min(k, positives, list length), and the sum is divided by the number of hits.

    Args:
        query: [q d].
        gallery: [m d].
        query_labels: [q].
        gallery_labels: [m].
        ks: cut-offs.
        own: [q], place of the query's own listing, removed from its list.
    """
    out = {f"{name}@{k}": np.full(len(query), np.nan) for name in ("mAP", "map_m5") for k in ks}
    for part, scores in _blocks(query, gallery, own):
        same = query_labels[part][:, None] == gallery_labels[None, :]
        same &= np.isfinite(scores)
        top = min(max(ks), scores.shape[1])
        order = _worst_case_order(scores, same)[:, :top]
        hits = np.take_along_axis(same, order, axis=1).astype(float)
        precision = np.cumsum(hits, axis=1) / np.arange(1, top + 1)
        positives = same.sum(1)
        length = np.isfinite(scores).sum(1)
        for k in ks:
            summed = (precision * hits)[:, :k].sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                standard = summed / np.minimum(k, positives)
            out[f"mAP@{k}"][part] = np.where(positives > 0, standard, np.nan)
            m5 = np.full(len(scores), np.nan)
            for row in np.flatnonzero(positives):
                cut = min(k, positives[row] + (own is not None), length[row])
                found = hits[row, :cut].sum()
                total = (precision * hits)[row, :cut].sum()
                m5[row] = total / found if found else 0.0
            out[f"map_m5@{k}"][part] = m5
    return out
