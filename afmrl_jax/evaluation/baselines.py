"""Baselines without training: raw pixels, a color histogram, and BM25 over texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary, attribute_terms, split_terms
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.evaluation.tasks import RECALL, Task, TaskInputs, per_query_values
from afmrl_jax.objectives.bm25 import fit_bm25
from afmrl_jax.types import AnyArray

PIXEL_SIDE = 32
HISTOGRAM_BINS = 6
PIXELS_AT_ONCE = 1 << 20
FINE = Task("fine", "both", "both", "product", (*RECALL, "MRR"))
Sides = tuple[np.ndarray | None, np.ndarray | None]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [n d] normalized to length 1; rows of zeros stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def pixel_vectors(listings: Sequence[Listing]) -> np.ndarray:
    """Pictures at 32 x 32, each centered and normalized, [n d]."""
    size = (PIXEL_SIDE, PIXEL_SIDE)
    rows = [
        np.asarray(decode(x.read_image_bytes()).resize(size), float).reshape(-1) for x in listings
    ]
    pixels = np.stack(rows)
    return unit(pixels - pixels.mean(1, keepdims=True))


def histogram_vectors(listings: Sequence[Listing]) -> np.ndarray:
    """Square roots of RGB histograms: their products are Bhattacharyya coefficients, [n d]."""
    out = []
    for x in listings:
        picture = np.asarray(decode(x.read_image_bytes()))
        counts = np.zeros(HISTOGRAM_BINS**3, np.int64)
        # The numbers of a large picture's bins take many times its memory.
        rows = max(1, PIXELS_AT_ONCE // picture.shape[1])
        for top in range(0, len(picture), rows):
            bins = picture[top : top + rows].reshape(-1, 3).astype(int) * HISTOGRAM_BINS // 256
            flat = (bins[:, 0] * HISTOGRAM_BINS + bins[:, 1]) * HISTOGRAM_BINS + bins[:, 2]
            counts += np.bincount(flat, minlength=HISTOGRAM_BINS**3)
        out.append(np.sqrt(counts / counts.sum()))
    return np.stack(out)


class Bm25Scorer:
    """BM25 of query texts against gallery texts, as one sparse product per tile.

    The same scores as `objectives.bm25` with the gallery's statistics, but for the whole vocabulary
    of a catalogue, for which a dense table of texts and terms would be too large.
    """

    def __init__(self, queries: Sequence[str], gallery: Sequence[str]):
        self.shape = len(queries), len(gallery)
        vocabulary = Bm25Vocabulary.fit(gallery, attributes=False)
        longest = max(1, *(len(split_terms(x)) for x in (*queries, *gallery)))
        terms = vocabulary.encode(gallery, longest, attributes=False)
        statistics = fit_bm25(terms, vocabulary.size)
        k1, b = statistics.k1, statistics.b
        counts = _counts(terms, vocabulary.size).tocoo()
        lengths = (terms >= 0).sum(1)
        norm = k1 * (1 - b + b * lengths / float(statistics.average_length))
        idf = np.asarray(statistics.idf)
        data = idf[counts.col] * counts.data / (counts.data + norm[counts.row])
        cells = (data.astype(np.float32), (counts.row, counts.col))
        self._gallery = sparse.csr_matrix(cells, counts.shape)
        asked = vocabulary.encode(queries, longest, attributes=False)
        self._queries = _counts(asked, vocabulary.size)

    def block(self, rows: np.ndarray, size: int) -> AnyArray:
        """See `Scorer.block`."""
        return self._queries[rows]

    def tile(self, block: AnyArray, columns: np.ndarray, size: int) -> np.ndarray:
        """See `Scorer.tile`; without padding, which is not needed here."""
        return np.asarray((block @ self._gallery[columns].T).toarray(), np.float32)


def _counts(terms: np.ndarray, vocab: int) -> sparse.csr_matrix:
    """How often each text has each known term, float32 [n v]."""
    known = (terms >= 0) & (terms < vocab)
    rows = np.nonzero(known)[0]
    ones = np.ones(len(rows), np.float32)
    # Repeats of a term add up.
    return sparse.csr_matrix((ones, (rows, terms[known])), (len(terms), vocab))


def bm25_texts(listings: Sequence[Listing], attributes: Mapping[str, str] | None) -> list[str]:
    """Titles, followed by the attribute values if attributes are given by listing id."""
    if attributes is None:
        return [x.title for x in listings]
    return [
        " ".join([x.title, *attribute_terms(attributes.get(x.listing_id, ""))]) for x in listings
    ]


def types_of(listings: Sequence[Listing]) -> np.ndarray | None:
    """The true attribute `type` of each listing, [n]; None if any lacks it."""
    found = [(x.attributes or {}).get("type") for x in listings]
    return np.array(found) if found and all(found) else None


def known_inputs(
    listings: Sequence[Listing], sides: Sides, known: Mapping[str, Any] | None = None
) -> TaskInputs:
    """Labels of some listings as task inputs, without vectors.

    Args:
        listings: n of them.
        sides: places of queries and gallery, None for all.
        known: further fields of `TaskInputs`.
    """
    categories = [x.category for x in listings]
    return TaskInputs(
        **{"both": None, "text": None, "image": None} | dict(known or {}),
        products=np.array([x.true_product for x in listings]),
        families=np.array([x.group for x in listings]),
        categories=np.array(categories) if all(categories) else None,
        types=types_of(listings),
        queries=sides[0],
        gallery=sides[1],
    )


def bm25_inputs(
    listings: Sequence[Listing], sides: Sides, attributes: Mapping[str, str] | None = None
) -> TaskInputs:
    """BM25 over titles, or over titles and attributes, as a system to evaluate."""
    texts = bm25_texts(listings, attributes)
    everything = np.arange(len(texts))
    queries, gallery = (
        [texts[n] for n in (everything if side is None else side)] for side in sides
    )
    return known_inputs(listings, sides, {"scorer": Bm25Scorer(queries, gallery)})


def baseline_inputs(
    listings: Sequence[Listing], sides: Sides = (None, None)
) -> Iterator[tuple[str, TaskInputs]]:
    """The baselines by name, as systems to evaluate: pictures, then titles.

    Args:
        listings: n of them.
        sides: places of queries and gallery, None for all.
    """
    for name, make in (("raw pixels", pixel_vectors), ("colour histogram", histogram_vectors)):
        vectors = np.float32(make(listings))
        yield name, known_inputs(listings, sides, {"both": vectors, "image": vectors})
    yield "BM25 over titles", bm25_inputs(listings, sides)


def run_baselines(
    listings: Sequence[Listing], sides: Sides = (None, None)
) -> dict[str, dict[str, float | None]]:
    """R@1, R@5, R@10 and MRR of the three baselines in percent; None if there were no queries.

    A query's own listing is excluded, and ties count against the query.
    """
    out: dict[str, dict[str, float | None]] = {}
    for name, inputs in baseline_inputs(listings, sides):
        values = per_query_values(inputs, (FINE,))
        out[name] = {}
        for metric, key in zip(FINE.metrics, FINE.named(), strict=True):
            kept = values[key][np.isfinite(values[key])]
            out[name][metric] = round(100 * float(kept.mean()), 2) if len(kept) else None
    return out
