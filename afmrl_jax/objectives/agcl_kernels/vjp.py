"""AGCL without a table of pairs: sides in, loss out, and the gradient by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from afmrl_jax.objectives.agcl_kernels.collective import Placement, gradients_of, sums_of
from afmrl_jax.objectives.agcl_kernels.products import accumulator
from afmrl_jax.objectives.agcl_kernels.stream import Denominator
from afmrl_jax.objectives.agcl_kernels.tile import (
    BINS,
    PADDED_COLUMN,
    PADDED_ROW,
    Counts,
    Plan,
    Rules,
    Side,
    Sums,
)
from afmrl_jax.objectives.bm25 import Bm25Terms, TermFactors, own_scores, term_factors
from afmrl_jax.types import Array, Float, Int


class Batch(NamedTuple):
    """All that the loss reads beside the vectors and tau; nothing of it has a gradient."""

    products: Int[Array, " q"]
    candidate_products: Int[Array, " c"]
    terms: Bm25Terms | None
    gamma: Float[Array, ""]
    delta: Float[Array, ""] | None
    agreement_rho: Float[Array, ""] | None
    agreement_epsilon: Float[Array, ""]


@dataclass(frozen=True)
class Stream:
    """How a batch is cut and where its parts go."""

    plan: Plan
    placement: Placement
    mesh: Mesh | None
    shards: int
    tile: tuple[int, int]
    """Rows and columns of a tile."""


def tile_length(count: int, shards: int, wanted: int) -> int:
    """Length of tiles of at most `wanted`, so that the fewest rows are padding.

    Example:
        >>> tile_length(1000, 1, 512), tile_length(4096, 8, 1024)
        (500, 512)
    """
    part = max(math.ceil(count / shards), 1)
    return math.ceil(part / math.ceil(part / wanted))


def padding(count: int, shards: int, length: int) -> int:
    """Rows to add so that every shard has the same number of whole tiles."""
    return -count % (shards * length)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def streamed_loss(
    stream: Stream,
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    temperature: Float[Array, ""],
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics, defined in `agcl_loss`.

    The backward pass computes every tile again from the inputs and from one log-sum-exp a row and a
    column. With G_ij the gradient by the logit l_ij, which a tile has from those, it is

        dL/dq_i = sum_j G_ij c_j / tau,   dL/dc_j = sum_i G_ij q_i / tau,
        dL/dtau = - sum_ij G_ij s_ij / tau^2 = - sum_i q_i dL/dq_i / tau.
    """
    # Without a gradient nothing needs to be kept.
    stream = replace(stream, plan=replace(stream.plan, keep=False))
    return _forward(stream, queries, candidates, temperature, batch)[0]


def _forward(
    stream: Stream, queries: jax.Array, candidates: jax.Array, temperature: jax.Array, batch: Batch
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], tuple]:
    plan, count = stream.plan, queries.shape[0]
    rules, rows, cols = _sides(stream, queries, candidates, temperature, batch)
    where = (stream.placement, stream.mesh)
    sums, counts, answers, kept = sums_of(plan, *where, rules, rows, cols)
    losses, ask = _finish(rows, sums, count)
    loss, answer = jnp.sum(losses) / count, None
    if answers is not None:
        losses, answer = _finish(cols, answers, count)
        loss = (loss + jnp.sum(losses) / count) / 2
    metrics = _metrics(rows, counts, count, candidates.shape[0])
    saved = queries, candidates, temperature, batch, ask, answer, kept
    return (loss, {"loss": loss, **metrics}), saved


def _backward(stream: Stream, saved: tuple, cotangents: tuple) -> tuple:
    queries, candidates, temperature, batch, ask, answer, kept = saved
    plan, count = stream.plan, queries.shape[0]
    rules, rows, cols = _sides(stream, queries, candidates, temperature, batch)
    where = (stream.placement, stream.mesh)
    by_rows, by_cols = gradients_of(plan, *where, rules, rows, cols, ask, answer, kept)
    by_rows, by_cols = (
        x.reshape(-1, x.shape[-1])[:n]
        for x, n in ((by_rows, count), (by_cols, candidates.shape[0]))
    )
    pair = _pair_gradient(ask)
    if answer is not None:
        pair = pair[:count] + _pair_gradient(answer)[:count]
    pair = pair[:count, None]
    # The metrics carry the loss a second time.
    scale = (cotangents[0] + cotangents[1]["loss"]) / (count * (1 if answer is None else 2))
    scale = scale.astype(by_rows.dtype) / temperature
    wide = by_rows.dtype
    by_rows = (by_rows + pair * candidates[:count].astype(wide)) * scale
    by_pairs = by_cols[:count] + pair * queries.astype(wide)
    by_cols = jnp.concatenate([by_pairs, by_cols[count:]]) * scale
    by_temperature = -jnp.sum(by_rows * queries.astype(wide)) / temperature
    return (
        by_rows.astype(queries.dtype),
        by_cols.astype(candidates.dtype),
        by_temperature,
        None,
    )


streamed_loss.defvjp(_forward, _backward)


def _sides(
    stream: Stream, queries: jax.Array, candidates: jax.Array, temperature: jax.Array, batch: Batch
) -> tuple[Rules, Side, Side]:
    """Rules, and both sides padded and cut into tiles."""
    wide, count = accumulator(queries), queries.shape[0]
    rules = Rules(
        temperature=temperature,
        gamma=batch.gamma,
        delta=batch.delta,
        agreement_rho=batch.agreement_rho,
        agreement_epsilon=batch.agreement_epsilon,
    )
    positive = jnp.sum(queries.astype(wide) * candidates[:count].astype(wide), axis=1)
    ask: TermFactors | None = None
    answer: TermFactors | None = None
    own = own_reverse = None
    if batch.terms is not None:
        ask = term_factors(batch.terms.statistics, batch.terms.query)
        answer = term_factors(batch.terms.statistics, batch.terms.candidate)
        pairs = TermFactors(*(x[:count] for x in answer))
        own = own_scores(ask, pairs).astype(wide)
        own_reverse = own_scores(pairs, ask).astype(wide) if stream.plan.exact_reverse else own
    further = candidates.shape[0] - count
    numbers = jnp.arange(candidates.shape[0], dtype=jnp.int32)
    beyond = partial(jnp.pad, pad_width=(0, further))
    rows = Side(queries, batch.products, numbers[:count], positive, own, ask)
    cols = Side(
        candidates,
        batch.candidate_products,
        numbers,
        beyond(positive),
        None if own_reverse is None else beyond(own_reverse),
        answer,
    )
    return (
        rules,
        _cut(rows, stream.shards, stream.tile[0], PADDED_ROW),
        _cut(cols, stream.shards, stream.tile[1], PADDED_COLUMN),
    )


def _cut(side: Side, shards: int, length: int, missing: int) -> Side:
    """Every leaf as [tiles, length, ...], with padding at the end."""
    more = padding(side.number.shape[0], shards, length)

    def cut(x: jax.Array, value: int = 0) -> jax.Array:
        if more:
            x = jnp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1)), constant_values=value)
        return x.reshape(-1, length, *x.shape[1:])

    return jax.tree.map(cut, side)._replace(number=cut(side.number, missing))


def _contrasted(side: Side, count: int) -> jax.Array:
    """Which rows or columns have a pair: neither padding nor a hard negative."""
    return (side.number >= 0) & (side.number < count)


def _finish(side: Side, sums: Sums, count: int) -> tuple[jax.Array, Denominator]:
    """Losses of a direction, 0 where nothing is contrasted, and what is kept of it.

    Logits are less that of the pair, which joins here as 0, so that a row without negatives costs
    exactly nothing.
    """
    total = losses = jax.nn.softplus(sums.peak + jnp.log(sums.total))
    positives = None
    here = _contrasted(side, count)
    if sums.positives is not None and sums.positive_logits is not None:
        positives = sums.positives + 1
        losses = total - sums.positive_logits / positives
        positives = jnp.where(here, positives, jnp.inf)
    kept = Denominator(jnp.where(here, total, jnp.inf), positives)
    return jnp.where(here, losses, jnp.zeros_like(losses)), kept


def _pair_gradient(kept: Denominator) -> jax.Array:
    """Gradient of a direction's losses by the logit of each pair, [n]."""
    if kept.positives is None:
        return jnp.expm1(-kept.log_total).reshape(-1)
    return (jnp.exp(-kept.log_total) - 1 / kept.positives).reshape(-1)


def _metrics(rows: Side, counts: Counts, count: int, columns: int) -> dict[str, jax.Array]:
    """Metrics of the first direction, see `agcl_loss`."""
    counts = Counts(*(x.reshape(-1, *x.shape[2:])[:count] for x in counts))
    positive = rows.positive.reshape(-1)[:count]
    wide = positive.dtype
    contrasted = jnp.isfinite(counts.hardest)
    with_negatives = jnp.maximum(jnp.sum(contrasted.astype(wide)), 1)

    def share(numbers: jax.Array, of: int) -> jax.Array:
        # By row first: the number of all pairs may be beyond int32.
        return jnp.mean(numbers.astype(wide) / max(of, 1), axis=0)

    reached = share(jnp.pad(counts.above, ((0, 0), (1, 1))), columns).at[0].set(1)
    weight = share(counts.weight, columns) if rows.own is not None else jnp.exp(jnp.ones((), wide))
    return {
        "accuracy": jnp.mean((positive > counts.hardest).astype(wide)),
        "positive_similarity": jnp.mean(positive),
        "hardest_negative": jnp.sum(jnp.where(contrasted, counts.hardest, jnp.zeros_like(positive)))
        / with_negatives,
        "mean_weight": weight,
        "masked": share(counts.masked, columns - 1),
        "masked_by_identity": share(counts.identity, columns - 1),
        "masked_by_margin": share(counts.margin, columns - 1),
        "masked_by_agreement": share(counts.agreement, columns - 1),
        **{f"weight_share_{k}": reached[k] - reached[k + 1] for k in range(BINS)},
    }
