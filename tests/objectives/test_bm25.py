"""BM25 against bm25s, rank_bm25, hand-worked numbers, and its own second form."""

import re
from functools import partial

import bm25s
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rank_bm25

from afmrl_jax.data.attributes.bm25_terms import batch_vocabulary
from afmrl_jax.objectives.bm25 import (
    Bm25Terms,
    TermFactors,
    bm25_scores,
    fit_bm25,
    own_scores,
    table_scores,
    term_factors,
    term_table,
)


@jax.jit
def localised(statistics, query, candidate):
    """Scores over the batch's own vocabulary, numbered on the device."""
    return bm25_scores(*Bm25Terms(statistics, query, candidate).localised())


def numbered_on_the_host(statistics, query, candidate):
    """Scores over the batch's own vocabulary, numbered by the loader."""
    texts = np.asarray(query), np.asarray(candidate)
    batch = batch_vocabulary(*texts, statistics.idf.shape[0], size=statistics.idf.shape[0] + 2)
    return bm25_scores(
        statistics.restricted(jnp.asarray(batch.terms)), *map(jnp.asarray, batch[1:])
    )


def in_tiles(statistics, query, candidate):
    """Scores as a tile of the loss makes them, one candidate a tile."""
    vocab = statistics.idf.shape[0]
    factors = term_factors(statistics, candidate)
    places = term_factors(statistics, query).places
    blocks = (TermFactors(*(x[i : i + 1] for x in factors)) for i in range(len(candidate)))
    return jnp.concatenate([table_scores(places, term_table(x, vocab)) for x in blocks], axis=1)


FORMS = {
    "gather": jax.jit(partial(bm25_scores, form="gather")),
    "matmul": jax.jit(partial(bm25_scores, form="matmul")),
    "localised": localised,
    "host": numbered_on_the_host,
    "tiles": jax.jit(in_tiles),
}
VOCABULARY = 23


def random_terms(seed: int, rows: int, width: int = 9, *, shortest: int = 1) -> np.ndarray:
    """Padded texts with repeats; ids up to VOCABULARY + 1, so that some are unknown."""
    rng = np.random.default_rng(seed)
    terms = rng.zipf(1.4, (rows, width)) % VOCABULARY
    lengths = rng.integers(shortest, width + 1, (rows, 1))
    return np.where(np.arange(width)[None] < lengths, terms, -1).astype(np.int32)


def texts(terms: np.ndarray) -> list[list[str]]:
    """The same texts as words."""
    return [[f"t{t}" for t in row if t >= 0] for row in terms]


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return random_terms(0, 40)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_equals_bm25s_lucene(form, corpus) -> None:
    queries = random_terms(1, 12)
    twin = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    twin.index(texts(corpus), show_progress=False)
    expected = np.stack([twin.get_scores(query) for query in texts(queries)])
    scores = form(fit_bm25(corpus, VOCABULARY), jnp.array(queries), jnp.array(corpus))
    assert scores.dtype == jnp.float32
    assert expected.max() > 1
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_equals_rank_bm25_with_lucene_idf(form, corpus) -> None:
    """rank_bm25 has another idf and the factor k1 + 1; with both set right it is an equal."""
    queries = random_terms(2, 12)
    twin = rank_bm25.BM25Okapi(texts(corpus), k1=1.5, b=0.75)
    frequency = {w: sum(w in set(x) for x in texts(corpus)) for w in twin.idf}
    twin.idf = {w: np.log(1 + (len(corpus) - n + 0.5) / (n + 0.5)) for w, n in frequency.items()}
    expected = np.stack([twin.get_scores(query) for query in texts(queries)]) / 2.5
    scores = form(fit_bm25(corpus, VOCABULARY), jnp.array(queries), jnp.array(corpus))
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_hand_worked(form) -> None:
    corpus = np.array([[0, 1, -1], [1, 1, 2]], np.int32)
    statistics = fit_bm25(corpus, 3)
    idf = np.log1p([1.5 / 1.5, 0.5 / 2.5, 1.5 / 1.5])
    np.testing.assert_allclose(statistics.idf, idf, rtol=1e-6)
    assert float(statistics.average_length) == 2.5
    short, long = 1.5 * (0.25 + 0.75 * 2 / 2.5), 1.5 * (0.25 + 0.75 * 3 / 2.5)
    expected = [
        [idf[0] / (1 + short) + idf[1] / (1 + short), idf[1] * 2 / (2 + long)],
        [0.0, idf[2] / (1 + long)],
    ]
    query = jnp.array([[0, 1], [-1, 2]], jnp.int32)
    np.testing.assert_allclose(form(statistics, query, jnp.array(corpus)), expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_repeats_padding_unknown_terms_and_empty_texts(form, corpus) -> None:
    statistics = fit_bm25(corpus, VOCABULARY)
    never = fit_bm25(corpus, VOCABULARY + 1)  # Id VOCABULARY is known and never occurs.
    once, twice, padded, unknown, empty = (
        form(statistics, jnp.array([query], jnp.int32), jnp.array(corpus))
        for query in (
            [3],
            [3, 3],
            [-1, 3, -1],
            [3, VOCABULARY, VOCABULARY + 7],
            [-1, -1],
        )
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    np.testing.assert_array_equal(padded, once)
    np.testing.assert_array_equal(unknown, once)
    assert not np.any(empty)
    assert not np.any(form(never, jnp.array([[VOCABULARY]], jnp.int32), jnp.array(corpus)))
    nothing = form(statistics, jnp.array([[3]], jnp.int32), jnp.full((1, 4), -1, jnp.int32))
    assert float(nothing[0, 0]) == 0.0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_unknown_terms_lengthen_a_candidate(form, corpus) -> None:
    statistics = fit_bm25(corpus, VOCABULARY)
    candidates = jnp.array([[3, -1], [3, VOCABULARY]], jnp.int32)
    scores = np.asarray(form(statistics, jnp.array([[3]], jnp.int32), candidates))[0]
    assert scores[0] > scores[1] > 0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_length_normalisation_and_no_saturation(form) -> None:
    corpus = np.array([[0, 0, 1], [1, -1, -1]], np.int32)
    statistics = fit_bm25(corpus, 2, k1=0.0, b=0.0)
    scores = form(statistics, jnp.array([[0]], jnp.int32), jnp.array(corpus))
    np.testing.assert_allclose(scores, [[np.log(2.0), 0.0]], rtol=1e-6)


def test_empty_corpora() -> None:
    for corpus in (np.full((3, 2), -1, np.int32), np.zeros((0, 2), np.int32)):
        statistics = fit_bm25(corpus, 4)
        assert not np.any(statistics.idf)
        query = jnp.array([[1, 2]], jnp.int32)
        assert np.all(np.asarray(bm25_scores(statistics, query, query)) == 0)


@pytest.mark.parametrize("bad", [{"k1": -1.0}, {"b": 1.5}])
def test_settings_out_of_range(bad) -> None:
    with pytest.raises(ValueError, match="need k1"):
        fit_bm25(np.zeros((1, 1), np.int32), 1, **bad)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_random_corpora_with_empty_texts_and_unknown_terms(form, seed) -> None:
    """Half the vocabulary is unknown, and a text may be empty on either side."""
    corpus = random_terms(seed, 30, shortest=0)
    queries = random_terms(seed + 10, 12, shortest=0)
    queries[3], corpus[5] = -1, -1
    known = VOCABULARY // 2
    words = [[f"t{t}" if t < known else f"unknown{t}" for t in row if t >= 0] for row in corpus]
    twin = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    twin.index(words, show_progress=False)
    asked = [[w for w in row if int(w[1:]) < known] for row in texts(queries)]
    expected = np.stack([twin.get_scores(x) if x else np.zeros(len(corpus)) for x in asked])
    scores = form(fit_bm25(corpus, known), jnp.array(queries), jnp.array(corpus))
    assert expected.max() > 1
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_products_of_counts_lose_nothing(corpus) -> None:
    """Products in bfloat16 alone, and yet equal to float64: three parts make up a float32."""
    statistics = fit_bm25(corpus, VOCABULARY)
    queries = random_terms(4, 12)
    run = jax.jit(partial(bm25_scores, form="matmul"))
    program = run.lower(statistics, jnp.array(queries), jnp.array(corpus)).as_text()
    products = [x for x in program.splitlines() if "dot_general" in x]
    assert len(products) == 3
    assert all(re.search(r": \(tensor<\w+xbf16>, tensor<\w+xbf16>\)", x) for x in products)
    table = np.asarray(term_table(term_factors(statistics, jnp.array(corpus)), VOCABULARY))
    counts = np.stack([np.bincount(x[(x >= 0) & (x < VOCABULARY)], minlength=24) for x in queries])
    expected = counts.astype(np.float64) @ table
    scores = run(statistics, jnp.array(queries), jnp.array(corpus))
    np.testing.assert_allclose(scores, expected, rtol=3e-7, atol=1e-7)


def test_more_repeats_than_bfloat16_counts() -> None:
    query = jnp.full((1, 300), 1, jnp.int32).at[0, 257:].set(0)
    table = jnp.array([[0.3], [0.7], [0.0]], jnp.float32)
    np.testing.assert_allclose(
        table_scores(query, table, "matmul"), 257 * 0.7 + 43 * 0.3, rtol=1e-6
    )


def test_own_scores_are_the_diagonal(corpus) -> None:
    statistics = fit_bm25(corpus, VOCABULARY)
    queries = random_terms(4, len(corpus), width=6, shortest=0)
    sides = [term_factors(statistics, jnp.array(x)) for x in (queries, corpus)]
    scores = bm25_scores(statistics, jnp.array(queries), jnp.array(corpus))
    np.testing.assert_allclose(own_scores(*sides), np.diagonal(scores), rtol=1e-5, atol=1e-6)


def test_unknown_form(unchecked) -> None:
    with pytest.raises(ValueError, match="not 'sparse'"):
        table_scores(jnp.zeros((1, 1), jnp.int32), jnp.zeros((2, 1)), "sparse")
