"""Baselines for AGCL: straightforward dense forms, and row chunks with remat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from afmrl_jax.objectives.agcl import Form, agcl_loss
from afmrl_jax.objectives.bm25 import Bm25Terms, bm25_scores, table_scores, term_factors, term_table

TEMPERATURE, GAMMA, DELTA = 0.05, 0.1, 0.3
Loss = Callable[[jax.Array, jax.Array, Bm25Terms, jax.Array], jax.Array]


def form(
    name: Form,
    symmetric: bool,
    *,
    tile: tuple[int, int] | None = None,
    metrics: bool = False,
    exact_reverse: bool = False,
) -> Callable:
    """One of the package's forms."""

    def loss(queries: jax.Array, candidates: jax.Array, terms: Bm25Terms, ids: jax.Array) -> tuple:
        return agcl_loss(
            queries,
            candidates,
            terms,
            ids,
            temperature=TEMPERATURE,
            gamma=GAMMA,
            delta=DELTA,
            symmetric=symmetric,
            form=name,
            bm25_reverse=exact_reverse,
            tile=tile,
        )

    return loss if metrics else lambda *batch: loss(*batch)[0]


def dense(symmetric: bool) -> Loss:
    """The literal formula without metrics, differentiated by JAX: both directions share the scores
    of a pair, and nothing is computed that the loss does not need.
    """

    def loss(
        queries: jax.Array, candidates: jax.Array, terms: Bm25Terms, ids: jax.Array
    ) -> jax.Array:
        scores = jnp.dot(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
        bias = 1.0 + jnp.tanh(GAMMA * bm25_scores(*terms))
        same = (ids[:, None] == ids[None, :]) & ~jnp.eye(len(ids), dtype=bool)
        value = _cross_entropy(scores, bias, same)
        if symmetric:
            value = (value + _cross_entropy(scores.T, bias.T, same.T)) / 2
        return value

    return loss


def _cross_entropy(scores: jax.Array, bias: jax.Array, same: jax.Array) -> jax.Array:
    fixed = jax.lax.stop_gradient(scores)
    masked = same | (fixed > jnp.diagonal(fixed)[:, None] + DELTA)
    masked = masked & ~jnp.eye(len(scores), dtype=bool)
    logits = jnp.where(masked, -jnp.inf, scores / TEMPERATURE + bias)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))


def dense_by_hand(symmetric: bool) -> Loss:
    """A dense form with a handwritten gradient: logits are kept, and each direction's softmax is
    computed in the backward pass, so it needs three products and few passes over the table.
    """

    def tables(
        queries: jax.Array, candidates: jax.Array, terms: Bm25Terms, ids: jax.Array
    ) -> tuple:
        scores = jnp.dot(queries, candidates.T, precision=jax.lax.Precision.HIGHEST)
        positive = jnp.diagonal(scores)
        away = ~jnp.eye(len(ids), dtype=bool)
        same = (ids[:, None] == ids[None, :]) & away
        logits = scores / TEMPERATURE + 1.0 + jnp.tanh(GAMMA * bm25_scores(*terms))
        rows = jnp.where(same | ((scores > positive[:, None] + DELTA) & away), -jnp.inf, logits)
        if not symmetric:
            return rows, None
        return rows, jnp.where(
            same | ((scores > positive[None, :] + DELTA) & away), -jnp.inf, logits
        )

    @jax.custom_vjp
    def loss(*batch: jax.Array) -> jax.Array:
        return forward(*batch)[0]

    def forward(*batch: jax.Array) -> tuple:
        rows, columns = tables(*batch)  # type: ignore[arg-type]
        sums = [jax.nn.logsumexp(rows, axis=1)]
        value = jnp.mean(sums[0] - jnp.diagonal(rows))
        if columns is not None:
            sums.append(jax.nn.logsumexp(columns, axis=0))
            value = (value + jnp.mean(sums[1] - jnp.diagonal(columns))) / 2
        return value, (batch[:2], rows, columns, sums)

    def backward(saved: tuple, cotangent: jax.Array) -> tuple:
        (queries, candidates), rows, columns, sums = saved
        gradient, directions = jnp.exp(rows - sums[0][:, None]), 1
        if columns is not None:
            gradient, directions = gradient + jnp.exp(columns - sums[1][None, :]), 2
        count = len(rows)
        gradient = (gradient - directions * jnp.eye(count)) * cotangent
        gradient = gradient / (TEMPERATURE * directions * count)
        product = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
        return product(gradient, candidates), product(gradient.T, queries), None, None

    loss.defvjp(forward, backward)
    return loss


def row_chunks(symmetric: bool, size: int, *, weighted: bool = True) -> Loss:
    """Rows in chunks of `size` against all columns, each chunk recomputed for its gradient.

    The second direction queries with the candidates' attributes, as `bm25_reverse=True` does.
    Without `weighted` there is no BM25: the table of term weights of all columns would dominate the
    memory of a large batch, and the comparison should not depend on it.
    """

    def one_way(sides: tuple[jax.Array, jax.Array], terms: Bm25Terms, ids: jax.Array) -> jax.Array:
        asking, asked = sides
        numbers = jnp.arange(len(ids), dtype=jnp.int32)
        vocab = terms.statistics.idf.shape[0]
        places = term_factors(terms.statistics, terms.query).places
        table = None
        if weighted:
            table = term_table(term_factors(terms.statistics, terms.candidate), vocab)

        @jax.checkpoint
        def chunk(block: tuple[jax.Array, ...]) -> jax.Array:
            rows, places, own, number = block
            scores = jnp.dot(rows, asked.T, precision=jax.lax.Precision.HIGHEST)
            pair = number[:, None] == numbers[None, :]
            fixed = jax.lax.stop_gradient(scores)
            positive = jnp.sum(jnp.where(pair, fixed, 0.0), axis=1, keepdims=True)
            masked = (own[:, None] == ids[None, :]) | (fixed > positive + DELTA)
            bias = 1.0 if table is None else 1.0 + jnp.tanh(GAMMA * table_scores(places, table))
            logits = jnp.where(masked & ~pair, -jnp.inf, scores / TEMPERATURE + bias)
            chosen = jnp.sum(jnp.where(pair, logits, 0.0), axis=1)
            return jnp.sum(jax.nn.logsumexp(logits, axis=1) - chosen)

        blocks = [x.reshape(-1, size, *x.shape[1:]) for x in (asking, places, ids, numbers)]
        return jnp.sum(jax.lax.map(chunk, tuple(blocks))) / len(ids)

    def loss(
        queries: jax.Array, candidates: jax.Array, terms: Bm25Terms, ids: jax.Array
    ) -> jax.Array:
        value = one_way((queries, candidates), terms, ids)
        if symmetric:
            turned = Bm25Terms(terms.statistics, terms.candidate, terms.query)
            value = (value + one_way((candidates, queries), turned, ids)) / 2
        return value

    return loss
