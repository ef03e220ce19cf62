"""BM25 of all pairs of a batch, against rank_bm25, bm25s and SciPy's sparse product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy import sparse

from afmrl_jax.data.attributes.bm25_terms import batch_vocabulary
from afmrl_jax.errors import ConfigError
from afmrl_jax.objectives.bm25 import Bm25Statistics, bm25_scores, fit_bm25
from afmrl_jax.performance.benchmarks.texts import attribute_texts
from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import AnyArray, JsonObject

K1, B = 1.5, 0.75
ENOUGH = 0.2
CLOSE = 1e-5
"""Largest difference of scores between the sides."""


@dataclass(frozen=True)
class Settings:
    """The batch, and how often each pair of sides is measured."""

    batch: int = 1024
    """Number of queries, and of candidates."""
    vocab: int = 20_000
    """Terms of the catalogue; a batch has a few thousand of them."""
    longest: int = 16
    """Most terms per text; the fewest are 4."""
    repeats: int = 9
    """Pairs of measurements; the median of their ratios is reported."""
    slow_repeats: int = 3
    """The same for rank_bm25, which takes seconds each time."""
    seed: int = 0


class Corpus(NamedTuple):
    """Input of every side, prepared before the clock starts."""

    statistics: Bm25Statistics
    queries: np.ndarray
    candidates: np.ndarray
    vocab: int

    def words(self, terms: np.ndarray) -> list[list[str]]:
        """Texts as lists of strings."""
        return [[f"t{t}" for t in row if t >= 0] for row in terms]


Side = Callable[[], AnyArray]
"""Scores [q c]; those of SciPy are sparse."""


def our_side(corpus: Corpus) -> Side:
    """Numbering of the batch's terms on the host, transfer, and scores on the device."""

    @jax.jit
    def on_device(
        statistics: Bm25Statistics, terms: jax.Array, query: jax.Array, candidate: jax.Array
    ) -> jax.Array:
        return bm25_scores(statistics.restricted(terms), query, candidate)

    def scores() -> jax.Array:
        batch = batch_vocabulary(corpus.queries, corpus.candidates, corpus.vocab)
        return on_device(corpus.statistics, *batch).block_until_ready()

    return scores


def rank_bm25_side(corpus: Corpus) -> Side:
    """rank_bm25 with Lucene's idf, one query after another; its index is built in advance."""
    from rank_bm25 import BM25Okapi

    texts = corpus.words(corpus.candidates)
    index = BM25Okapi(texts, k1=K1, b=B)
    idf = np.asarray(corpus.statistics.idf, np.float64)
    # Its idf differs, and its scores are k1 + 1 times Lucene's.
    index.idf = {word: idf[int(word[1:])] / (K1 + 1) for word in index.idf}
    queries = corpus.words(corpus.queries)
    return lambda: np.stack([index.get_scores(query) for query in queries])


def bm25s_side(corpus: Corpus) -> Side:
    """bm25s on queries already converted to ids; its index holds all scores precomputed."""
    import bm25s

    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(corpus.words(corpus.candidates), show_progress=False)
    known = index.vocab_dict
    queries = [
        [known[word] for word in text if word in known] for text in corpus.words(corpus.queries)
    ]
    count = len(corpus.candidates)

    def scores() -> np.ndarray:
        return np.stack(
            [index.get_scores_from_ids(x) if x else np.zeros(count, np.float32) for x in queries]
        )

    return scores


def scipy_side(corpus: Corpus) -> Side:
    """The product of two CSR matrices, both built in advance; the result stays sparse."""
    count, width = corpus.candidates.shape
    lengths = (corpus.candidates >= 0).sum(1)
    norm = K1 * (1 - B + B * lengths / float(corpus.statistics.average_length))
    tables = []
    for terms in (corpus.queries, corpus.candidates):
        rows = np.repeat(np.arange(len(terms)), width)[terms.ravel() >= 0]
        columns = terms.ravel()[terms.ravel() >= 0]
        ones = np.ones(len(rows), np.float32)
        # Repeats of a term add up.
        tables.append(sparse.csr_matrix((ones, (rows, columns)), (count, corpus.vocab)))
    weights = tables[1].tocoo()
    idf = np.asarray(corpus.statistics.idf)
    data = idf[weights.col] * weights.data / (weights.data + norm[weights.row])
    weights = sparse.csr_matrix(
        (data.astype(np.float32), (weights.row, weights.col)), weights.shape
    )
    turned = weights.T.tocsr()
    return lambda: tables[0] @ turned


SIDES: dict[str, Callable[[Corpus], Side]] = {
    "speedup_rank_bm25": rank_bm25_side,
    "speedup_bm25s": bm25s_side,
    "speedup_scipy": scipy_side,
}


def _seconds(side: Side) -> float:
    """Median time of the calls that fit into `ENOUGH` seconds, at least one."""
    # At the first call the caches still hold the other side's data.
    side()
    found: list[float] = []
    while not found or (sum(found) < ENOUGH and len(found) < 50):
        start = time.perf_counter()
        side()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def _table(scores: AnyArray) -> np.ndarray:
    return np.asarray(scores.toarray() if sparse.issparse(scores) else scores, np.float64)


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure against each library in turn, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written, or a library is not installed.
        RuntimeError: the scores of two sides differ, so timing is meaningless.
    """
    check_writable(out, is_record_of("bm25"))
    texts = [
        attribute_texts(settings.batch, settings.vocab, settings.longest, settings.seed + side)
        for side in range(2)
    ]
    statistics = fit_bm25(texts[1], settings.vocab, k1=K1, b=B)
    corpus = Corpus(statistics, texts[0], texts[1], settings.vocab)
    ours = our_side(corpus)
    found = _table(ours())
    figures, details = {}, []
    for figure, make in SIDES.items():
        try:
            theirs = make(corpus)
        except ImportError as error:
            raise ConfigError(
                f"{error}: `pip install 'afmrl-jax[bench]'` installs the compared libraries"
            ) from error
        difference = float(np.abs(found - _table(theirs())).max())
        if not difference < CLOSE:
            raise RuntimeError(f"{figure}: scores differ by {difference:.2g}")
        times = settings.slow_repeats if "rank" in figure else settings.repeats
        detail = _pairs(figure, ours, theirs, times)
        figures[figure] = detail["speedup"]["median"]
        log_info(f"{figure}: {figures[figure]:.2f}")
        shape = {"batch": settings.batch, "vocab": settings.vocab, "longest": settings.longest}
        details.append(detail | {"largest_difference": difference, "shape": shape})
    write_record(out, "bm25", figures, details)
    return figures


def _pairs(name: str, ours: Side, theirs: Side, repeats: int) -> JsonObject:
    samples: tuple[list[float], list[float]] = ([], [])
    with Progress(name, repeats) as progress:
        for done in range(1, repeats + 1):
            for side, kept in zip((ours, theirs), samples, strict=True):
                kept.append(_seconds(side))
            progress.update(done)
    return {
        "part": name,
        "our_seconds": spread(samples[0]),
        "their_seconds": spread(samples[1]),
        "speedup": ratios(samples[1], samples[0]),
    }
