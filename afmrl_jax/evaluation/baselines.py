"""What needs no learning: raw pixels, a colour histogram, and BM25 over titles."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from afmrl_jax.data.images import decode
from afmrl_jax.data.records import Listing
from afmrl_jax.data.terms import Bm25Vocabulary
from afmrl_jax.evaluation.metrics import positive_ranks, recall_at_k
from afmrl_jax.objectives.bm25 import bm25_scores, fit_bm25

PIXEL_SIDE = 32
HISTOGRAM_BINS = 6
TITLE_TERMS = 40


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def pixel_vectors(listings: Sequence[Listing]) -> np.ndarray:
    """Pictures at 32 x 32, each standardised, [n d]."""
    size = (PIXEL_SIDE, PIXEL_SIDE)
    rows = [
        np.asarray(decode(x.read_image_bytes()).resize(size), float).reshape(-1) for x in listings
    ]
    pixels = np.stack(rows)
    return _unit(pixels - pixels.mean(1, keepdims=True))


def histogram_vectors(listings: Sequence[Listing]) -> np.ndarray:
    """Square roots of RGB histograms: their products are Bhattacharyya coefficients, [n d]."""
    out = []
    for x in listings:
        pixels = np.asarray(decode(x.read_image_bytes())).reshape(-1, 3)
        bins = (pixels.astype(int) * HISTOGRAM_BINS) // 256
        flat = (bins[:, 0] * HISTOGRAM_BINS + bins[:, 1]) * HISTOGRAM_BINS + bins[:, 2]
        counts = np.bincount(flat, minlength=HISTOGRAM_BINS**3)
        out.append(np.sqrt(counts / counts.sum()))
    return np.stack(out)


def title_ranks(listings: Sequence[Listing], products: np.ndarray) -> np.ndarray:
    """Rank of the best positive by BM25 over titles, int64 [n]."""
    titles = [x.title for x in listings]
    vocabulary = Bm25Vocabulary.fit(titles, attributes=False)
    terms = vocabulary.encode(titles, TITLE_TERMS, attributes=False)
    on_device = jnp.asarray(terms)
    scores = np.array(bm25_scores(fit_bm25(terms, vocabulary.size), on_device, on_device))
    np.fill_diagonal(scores, -np.inf)
    same = products[:, None] == products[None, :]
    np.fill_diagonal(same, False)
    best = np.where(same, scores, -np.inf).max(1, keepdims=True)
    above = ((scores >= best) & ~same & np.isfinite(scores)).sum(1)
    return np.where(same.any(1), 1 + above, 0)


def run_baselines(listings: Sequence[Listing]) -> dict[str, dict[str, float]]:
    """R@1, R@5 and R@10 in percent of the three on some listings.

    A query's own listing is excluded and ties count against it.
    """
    products = np.array([x.true_product for x in listings])
    own = np.arange(len(products))
    ranks = {}
    for name, vectors in (
        ("raw pixels", pixel_vectors(listings)),
        ("colour histogram", histogram_vectors(listings)),
    ):
        ranks[name] = positive_ranks(vectors, vectors, products, products, own)
    ranks["BM25 over titles"] = title_ranks(listings, products)
    return {
        name: {f"R@{k}": round(100 * float(recall_at_k(found, k).mean()), 2) for k in (1, 5, 10)}
        for name, found in ranks.items()
    }
