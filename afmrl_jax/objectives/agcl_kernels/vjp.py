"""AGCL without a table of pairs: sides in, loss out, and the gradient by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from afmrl_jax.objectives.agcl_kernels.collective import gradients_of, sums_of
from afmrl_jax.objectives.agcl_kernels.sides import Batch, Stream, sides_of
from afmrl_jax.objectives.agcl_kernels.stream import Denominator
from afmrl_jax.objectives.agcl_kernels.sums import BINS, Counts, Sums
from afmrl_jax.objectives.agcl_kernels.tile import Side
from afmrl_jax.types import Array, Float


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
    rules, rows, cols = sides_of(stream, queries, candidates, temperature, batch)
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
    rules, rows, cols = sides_of(stream, queries, candidates, temperature, batch)
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


def _contrasted(side: Side, count: int) -> jax.Array:
    """Which rows or columns have a pair: neither padding nor a hard negative."""
    return (side.number >= 0) & (side.number < count)


def _finish(side: Side, sums: Sums, count: int) -> tuple[jax.Array, Denominator]:
    """Losses of a direction, 0 where nothing is contrasted, and what is kept of it.

    Logits are less that of the pair, which joins here as 0, so that a row without negatives costs
    exactly nothing.
    """
    negatives, log_mean, positives = sums.peak + jnp.log(sums.total), None, None
    if sums.negatives is not None and sums.weights is not None:
        # Without negatives there is no mean, and any will do.
        none = jnp.ones_like(sums.weights)
        mean = jnp.where(sums.negatives > 0, sums.weights / jnp.maximum(sums.negatives, 1), none)
        log_mean = jnp.log(mean)
        negatives = negatives - log_mean
    total = losses = jax.nn.softplus(negatives)
    here = _contrasted(side, count)
    if sums.positives is not None and sums.positive_logits is not None:
        positives = sums.positives + 1
        losses = total - sums.positive_logits / positives
        positives = jnp.where(here, positives, jnp.inf)
    kept = Denominator(jnp.where(here, total, jnp.inf), positives, log_mean)
    return jnp.where(here, losses, jnp.zeros_like(losses)), kept


def _pair_gradient(kept: Denominator) -> jax.Array:
    """Gradient of a direction's losses by the logit of each pair, [n]."""
    if kept.positives is None:
        return jnp.expm1(-kept.log_total).reshape(-1)
    return (jnp.exp(-kept.log_total) - 1 / kept.positives).reshape(-1)


def _metrics(rows: Side, counts: Counts, count: int, columns: int) -> dict[str, jax.Array]:
    """Metrics of the first direction, see `agcl_loss`."""
    counts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], counts)
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
        **{f"masked_by_{k}": share(x, columns - 1) for k, x in counts.reasons.items()},
        **{f"weight_share_{k}": reached[k] - reached[k + 1] for k in range(BINS)},
    }
