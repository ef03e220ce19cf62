"""What tiles of AGCL add up: the log-sum-exp of each query and candidate, and what is observed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.objectives.agcl_kernels.tile import Direction, Pairs, Plan, Side
from afmrl_jax.types import Array, Float, Int

BINS = 8
"""Of the histogram of weights."""


class Sums(NamedTuple):
    """Log-sum-exp of the negatives so far, total e^peak, and the further positives; each [n]."""

    peak: Float[Array, " n"]
    total: Float[Array, " n"]
    positives: Float[Array, " n"] | None
    """How many, the pair itself not counted."""
    positive_logits: Float[Array, " n"] | None
    negatives: Float[Array, " n"] | None
    """How many; None unless weights are divided by their mean."""
    weights: Float[Array, " n"] | None
    """Of the negatives, over e."""


class Counts(NamedTuple):
    """What is observed of the first direction; int32 where it counts pairs; each [n ...]."""

    hardest: Float[Array, " n"]
    """Highest score of a negative, -inf without any."""
    masked: Int[Array, " n"]
    reasons: dict[str, Int[Array, " n"]]
    """Masked pairs by reason: `identity`, and those of `rules.Verdict`."""
    weight: Float[Array, " n"]
    above: Int[Array, "n edges"]
    """Pairs whose |ln w - 1| reaches 1/8, ..., 7/8."""


def start_sums(plan: Plan, side: Side) -> Sums:
    """Nothing summed. The peak starts at the logit of the pair, 0, and so is always finite."""
    zero = jnp.zeros_like(side.positive)
    further = (zero, zero) if plan.count_positives else (None, None)
    weights = (zero, zero) if plan.normalized else (None, None)
    return Sums(zero, zero, *further, *weights)


def start_counts(side: Side) -> Counts:
    """Nothing observed. The first three reasons are always reported."""
    none = jnp.zeros(side.number.shape, jnp.int32)
    zero = jnp.zeros_like(side.positive)
    above = jnp.zeros((*none.shape, BINS - 1), jnp.int32)
    reasons = ["identity", "margin", "agreement"]
    reasons += [] if side.teacher is None else ["teacher"]
    reasons += [] if side.known is None else ["oracle"]
    return Counts(jnp.full_like(zero, -jnp.inf), none, dict.fromkeys(reasons, none), zero, above)


def add_sums(sums: Sums, found: Direction, pairs: Pairs, axis: int) -> Sums:
    """Online log-sum-exp: the sum so far is rescaled to the higher peak of both."""
    peak = jnp.maximum(sums.peak, jnp.max(found.logits, axis=axis))
    total = jnp.sum(jnp.exp(found.logits - jnp.expand_dims(peak, axis)), axis=axis)
    total = total + sums.total * jnp.exp(sums.peak - peak)
    sums = sums._replace(peak=peak, total=total)
    if sums.positives is not None and sums.positive_logits is not None:
        further = pairs.same & ~pairs.own
        number = jnp.sum(further, axis=axis, dtype=total.dtype)
        logit = jnp.sum(jnp.where(further, found.logits, jnp.zeros_like(found.logits)), axis=axis)
        positive_logits = sums.positive_logits + logit
        sums = sums._replace(positives=sums.positives + number, positive_logits=positive_logits)
    if sums.negatives is not None and sums.weights is not None:
        assert found.verdict.log_weight is not None
        weights = jnp.exp(found.verdict.log_weight)
        weights = jnp.where(found.absent, jnp.zeros_like(weights), weights)
        sums = sums._replace(
            negatives=sums.negatives + jnp.sum(~found.absent, axis=axis, dtype=total.dtype),
            weights=sums.weights + jnp.sum(weights, axis=axis),
        )
    return sums


def add_counts(plan: Plan, counts: Counts, found: Direction, pairs: Pairs) -> Counts:
    """Count what the first direction masks, and how it weights."""

    def number(mask: jax.Array) -> jax.Array:
        return jnp.sum(mask, axis=1, dtype=jnp.int32)

    # A further positive is in the sums, but no negative.
    negative = ~(found.absent | pairs.same)
    hardest = jnp.max(jnp.where(negative, pairs.ask.scores, -jnp.inf), axis=1)
    masked = ~negative & ~(pairs.same if plan.count_positives else pairs.own)
    if pairs.real is not None:
        masked = masked & pairs.real
    reasons = dict(found.verdict.reasons)
    if not plan.count_positives:
        reasons["identity"] = pairs.same & ~pairs.own
    weight, above, log_weight = counts.weight, counts.above, found.verdict.log_weight
    if log_weight is not None:
        values = jnp.exp(1.0 + log_weight)
        edges = [jnp.abs(log_weight) >= edge / BINS for edge in range(1, BINS)]
        if pairs.real is not None:
            values = jnp.where(pairs.real, values, jnp.zeros_like(values))
            edges = [x & pairs.real for x in edges]
        weight = weight + jnp.sum(values, axis=1)
        above = above + jnp.stack([number(x) for x in edges], axis=1)
    return Counts(
        jnp.maximum(counts.hardest, hardest),
        counts.masked + number(masked),
        {k: x + number(reasons[k]) if k in reasons else x for k, x in counts.reasons.items()},
        weight,
        above,
    )
