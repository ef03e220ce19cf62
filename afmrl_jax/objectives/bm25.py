"""BM25 between attribute texts, on the device, from padded term ids."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Float, Int

Form = Literal["auto", "gather", "matmul"]
ALIGNED = 128
"""Terms that `matmul` pads its table to a multiple of."""


class Bm25Statistics(NamedTuple):
    """What a corpus contributes to its scores, fitted once; a pytree, so it can enter `jit`."""

    idf: Float[Array, " v"]
    """float32; Lucene's ln(1 + (N - n + 0.5) / (n + 0.5)), 0 for a term never seen."""
    average_length: Float[Array, ""]
    """float32 scalar; mean number of terms of a document."""
    k1: float = 1.5
    b: float = 0.75

    def restricted(self, terms: Int[Array, " u"]) -> Bm25Statistics:
        """The same statistics over the terms of a batch alone.

        Args:
            terms: int32 [u], ids of the batch's terms, -1 is padding; `data.terms.batch_vocabulary`
                chooses them and numbers the batch's texts again.
        """
        idf = jnp.where(terms >= 0, self.idf[jnp.maximum(terms, 0)], jnp.zeros((), self.idf.dtype))
        return self._replace(idf=idf)


class Bm25Terms(NamedTuple):
    """Attribute texts of a batch, from which a loss scores any pair of them; a pytree.

    It is O(n a), where the table of scores would be O(q c).
    """

    statistics: Bm25Statistics
    query: Int[Array, "q a"]
    """int32; term ids, -1 is padding."""
    candidate: Int[Array, "c n"]
    """int32; term ids, -1 is padding."""

    def localised(self) -> Bm25Terms:
        """The same scores over the terms that a query and a candidate share.

        Tables over terms then have as many rows as the batch can share terms, and not as many as
        the corpus has. That bound, min(v, q a, c n), is all that is known when a program is
        compiled; `data.terms.batch_vocabulary` counts on the host and comes out smaller.
        """
        vocab = self.statistics.idf.shape[0]
        size = min(vocab, self.query.size, self.candidate.size)
        if size == vocab:
            return self
        query, candidate = (_place(x, vocab) for x in (self.query, self.candidate))
        seen = [jnp.zeros(vocab + 1, bool).at[x].set(True) for x in (query, candidate)]
        shared = (seen[0] & seen[1]).at[vocab].set(False)
        number = jnp.where(shared, jnp.cumsum(shared.astype(jnp.int32)) - 1, size)
        # A term that is not shared adds to the length of its text and matches nothing.
        query = jnp.where(self.query < 0, -1, number[query])
        candidate = jnp.where(self.candidate < 0, -1, number[candidate])
        idf = (
            jnp.zeros(size + 1, self.statistics.idf.dtype)
            .at[number[:vocab]]
            .set(self.statistics.idf)
        )
        return Bm25Terms(self.statistics._replace(idf=idf[:size]), query, candidate)


class TermFactors(NamedTuple):
    """What a text brings to its scores, as a query and as a document."""

    places: Int[Array, "n a"]
    """int32; known terms below v, and v for padding and unknown terms."""
    weights: Float[Array, "n a"]
    """Of the text as a document: a slot's part of idf tf / (tf + norm), 0 where nothing is."""


def fit_bm25(
    terms: np.ndarray, vocab_size: int, *, k1: float = 1.5, b: float = 0.75
) -> Bm25Statistics:
    """Statistics of a corpus, on the host.

    Args:
        terms: int [n a]; a document's term ids with repeats, -1 is padding. An unknown id
            (`vocab_size` or above) adds to its document's length only.
        vocab_size: v, ids of known terms lie below it.
        k1: saturation of repeated terms, at least 0.
        b: strength of length normalization, in [0, 1].

    Raises:
        ValueError: k1, b or vocab_size is out of range.
    """
    if k1 < 0 or not 0 <= b <= 1 or vocab_size < 1:
        raise ValueError(f"need k1 >= 0, 0 <= b <= 1, vocab_size >= 1: {k1}, {b}, {vocab_size}")
    terms = np.asarray(terms)
    documents = len(terms)
    known = (terms >= 0) & (terms < vocab_size)
    rows = np.broadcast_to(np.arange(documents)[:, None], terms.shape)
    once = np.unique(np.stack([rows[known], terms[known]]), axis=1)
    frequency = np.bincount(once[1].astype(np.int64), minlength=vocab_size)
    idf = np.log1p((documents - frequency + 0.5) / (frequency + 0.5)) * (frequency > 0)
    lengths = (terms >= 0).sum(1)
    # A corpus of empty texts has no mean length; any positive one keeps the division finite.
    average = float(lengths.mean()) if lengths.any() else 1.0
    return Bm25Statistics(jnp.asarray(idf, jnp.float32), jnp.float32(average), k1, b)


def bm25_scores(
    statistics: Bm25Statistics,
    query: Int[AnyArray, "q a"],
    candidate: Int[AnyArray, "c n"],
    *,
    form: Form = "auto",
) -> Float[Array, "q c"]:
    """Score of every query against every candidate.

        score(q, d) = sum_{t in q} idf(t) tf(t, d) / (tf(t, d) + k1 (1 - b + b |d| / mean length))

    A query term that occurs twice counts twice; padding, unknown terms and empty documents give
    0. This is Lucene's form since version 8, without the constant factor k1 + 1.

    Both forms make a [v + 1, c] table of term weights. `gather` adds a row of it for each term of a
    query, work q a c and independent of v; `matmul` multiplies the queries' term counts [q v] with
    it, in bfloat16 parts without loss, for matrix units that a device has and gathers that it does
    slowly. Pass a batch's own terms (`Bm25Terms.localised`) to keep v small.

    Example:
        >>> statistics = fit_bm25(np.array([[0, 1], [1, 2]]), 3)
        >>> scores = bm25_scores(statistics, jnp.array([[0, -1]]), jnp.array([[0, 1], [1, 2]]))
        >>> # ln(1 + 1.5 / 1.5) / (1 + 1.5), and no shared term:
        >>> [round(float(x), 4) for x in scores[0]]
        [0.2773, 0.0]

    Args:
        statistics: of the corpus.
        query: int32 [q a], -1 is padding.
        candidate: int32 [c n], -1 is padding.
        form: `auto` is `gather` on CPUs, where a [1024 1024] table of scores took 1 ms against
            the product's 50, and on GPUs, and `matmul` on TPUs.

    Returns:
        [q c] in the type of `statistics.idf`, float32 as fitted.

    Reference: Kamphuis et al., Which BM25 do you mean?, ECIR 2020.
    """
    vocab = statistics.idf.shape[0]
    table = term_table(term_factors(statistics, jnp.asarray(candidate)), vocab)
    return table_scores(_place(jnp.asarray(query), vocab), table, form)


def term_factors(statistics: Bm25Statistics, terms: Int[Array, "n a"]) -> TermFactors:
    """What each text brings to its scores; the work is n a^2.

    Args:
        statistics: of the corpus.
        terms: int32 [n a], -1 is padding.
    """
    vocab, kind = statistics.idf.shape[0], statistics.idf.dtype
    places = _place(terms, vocab)
    lengths = jnp.sum(terms >= 0, axis=1).astype(kind)
    norm = statistics.k1 * (1.0 - statistics.b + statistics.b * lengths / statistics.average_length)
    repeats = jnp.sum(places[:, :, None] == places[:, None, :], axis=2).astype(kind)
    idf = jnp.pad(statistics.idf, (0, 1))[places]
    # tf / (tf + norm) spread over the tf slots of its term.
    return TermFactors(places, idf / (repeats + norm.astype(kind)[:, None]))


def term_table(factors: TermFactors, vocab: int) -> Float[Array, "v c"]:
    """Term weights of documents by term, [vocab + 1, c]; the last row is zero."""
    count = factors.places.shape[0]
    columns = jnp.arange(count, dtype=jnp.int32)[None]
    table = jnp.zeros((vocab + 1, count), factors.weights.dtype)
    return table.at[factors.places.T, columns].add(factors.weights.T)


def table_scores(
    places: Int[Array, "q a"], table: Float[Array, "v c"], form: Form = "auto"
) -> Float[Array, "q c"]:
    """Scores of queries against the documents of a `term_table`.

    Args:
        places: int32 [q a], as in `TermFactors`.
        table: [vocab + 1, c].
        form: as in `bm25_scores`.

    Raises:
        ValueError: there is no such form.
    """
    platform = built_for()
    if form == "auto":
        form = "matmul" if platform == "tpu" else "gather"
    if form == "matmul":
        return _counted(places, table)
    if form != "gather":
        raise ValueError(f"BM25 has the forms auto, gather and matmul, not {form!r}")

    def add(column: jax.Array, total: jax.Array) -> jax.Array:
        place = jax.lax.dynamic_index_in_dim(places, column, 1, keepdims=False)
        return total + table.at[place].get(mode="promise_in_bounds")

    start = jnp.zeros((places.shape[0], table.shape[1]), table.dtype)
    # Unrolled, so that XLA adds several rows in one pass over the scores; on a GPU mostly all of
    # them, together with what is made of the scores.
    at_once = 8 if platform == "cpu" else 16
    return jax.lax.fori_loop(0, places.shape[1], add, start, unroll=at_once)


def _counted(places: jax.Array, table: jax.Array) -> jax.Array:
    """Term counts times the table, as products of bfloat16 that are summed in float32.

    Counts up to 256 are bfloat16 numbers, and three of them add up to a float32 number.
    """
    # Matrix units work on blocks of terms.
    terms = -(-table.shape[0] // ALIGNED) * ALIGNED
    table = jnp.pad(table, ((0, terms - table.shape[0]), (0, 0)))
    kind = table.dtype if table.dtype == jnp.float64 or places.shape[1] > 256 else jnp.bfloat16
    rows = jnp.arange(places.shape[0], dtype=jnp.int32)[:, None]
    counts = jnp.zeros((places.shape[0], terms), kind).at[rows, places].add(jnp.ones((), kind))
    if kind == table.dtype:
        return jnp.dot(counts, table, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.zeros((places.shape[0], table.shape[1]), table.dtype)
    for _ in range(3):
        # A conversion there and back is one that XLA may drop.
        part = jax.lax.reduce_precision(table, exponent_bits=8, mantissa_bits=7)
        scores = scores + jnp.dot(counts, part.astype(kind), preferred_element_type=table.dtype)
        table = table - part
    return scores


def own_scores(query: TermFactors, document: TermFactors) -> Float[Array, " n"]:
    """Score of query i against document i alone, without a table; the work is n a^2."""
    known = query.places[:, :, None] == document.places[:, None, :]
    zero = jnp.zeros((), document.weights.dtype)
    return jnp.sum(jnp.where(known, document.weights[:, None, :], zero), axis=(1, 2))


def _place(terms: jax.Array, vocab: int) -> jax.Array:
    """Term ids with padding and unknown ids moved to `vocab`, one past the last known term."""
    return jnp.where((terms >= 0) & (terms < vocab), terms, vocab)
