"""The dense twin of the streamed AGCL kernels: the definition, with every table of pairs whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float
from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.objectives.agcl_kernels.tile import BINS, accumulator
from afmrl_jax.objectives.agcl_kernels.vjp import Batch


def dense_loss(
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    temperature: Float[Array, ""],
    bm25: Float[Array, "q c"],
    bm25_reverse: Float[Array, "q q"] | None,
    batch: Batch,
    *,
    symmetric: bool,
    count_positives: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics as `agcl_loss` defines them, differentiated by JAX.

    Args:
        queries: [q d].
        candidates: [c d].
        temperature: tau.
        bm25: of query i and candidate j.
        bm25_reverse: of candidate i (of the pairs) and query j; None for `bm25` transposed.
        batch: identities and settings.
        symmetric: whether candidates are contrasted with queries too.
        count_positives: whether further candidates of a product are positives.
    """
    wide, count = accumulator(queries), queries.shape[0]
    scores = jnp.dot(
        queries.astype(wide), candidates.astype(wide).T, precision=jax.lax.Precision.HIGHEST
    )
    bm25 = bm25.astype(wide)
    same = _same_product(batch)
    loss, metrics = _one_direction(scores, bm25, same, temperature, batch, count_positives)
    if symmetric:
        reverse = bm25[:, :count].T if bm25_reverse is None else bm25_reverse.astype(wide)
        back, _ = _one_direction(
            scores[:, :count].T, reverse, same[:, :count].T, temperature, batch, count_positives
        )
        loss = (loss + back) / 2
    return loss, {"loss": loss, **metrics}


def _same_product(batch: Batch) -> Bool[Array, "q c"]:
    same = batch.products[:, None] == batch.candidate_products[None, :]
    if batch.groups is not None and batch.candidate_groups is not None:
        known = batch.groups[:, None] >= 0
        same = same | (known & (batch.groups[:, None] == batch.candidate_groups[None, :]))
    return same


def _one_direction(
    scores: Float[Array, "q c"],
    bm25: Float[Array, "q c"],
    same: Bool[Array, "q c"],
    temperature: Float[Array, ""],
    batch: Batch,
    count_positives: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of rows against columns; the pairs are on the diagonal."""
    fixed = jax.lax.stop_gradient(scores)
    bm25 = jax.lax.stop_gradient(bm25)
    pair = jnp.eye(scores.shape[0], scores.shape[1], dtype=bool)
    positive = pair | same if count_positives else pair
    reasons = _false_negatives(fixed, bm25, same, positive, batch)
    masked = reasons["identity"] | reasons["margin"] | reasons["agreement"]
    bias = 1.0 + jnp.tanh(jax.lax.stop_gradient(batch.gamma) * bm25)
    logits = jnp.where(masked, MASKED, scores / temperature + bias)
    log_shares = jax.nn.log_softmax(logits, axis=1)
    chosen = jnp.where(positive, log_shares, jnp.zeros_like(log_shares))
    loss = -jnp.mean(jnp.sum(chosen, axis=1) / jnp.sum(positive, axis=1, dtype=chosen.dtype))
    return loss, _metrics(fixed, bias, masked | positive | same, reasons | {"any": masked})


def _false_negatives(
    scores: Float[Array, "q c"],
    bm25: Float[Array, "q c"],
    same: Bool[Array, "q c"],
    positive: Bool[Array, "q c"],
    batch: Batch,
) -> dict[str, Bool[Array, "q c"]]:
    """Which pairs leave the denominator, by reason; a pair may have several."""
    own_score, own_bm25 = jnp.diagonal(scores)[:, None], jnp.diagonal(bm25)[:, None]
    margin = agreement = jnp.zeros_like(same)
    if batch.delta is not None:
        margin = scores > own_score + batch.delta
    if batch.agreement_rho is not None:
        agreement = (bm25 >= batch.agreement_rho * own_bm25) & (own_bm25 > 0)
        agreement = agreement & (scores > own_score - batch.agreement_epsilon)
    found = {"identity": same, "margin": margin, "agreement": agreement}
    return {reason: mask & ~positive for reason, mask in found.items()}


def _metrics(
    scores: Float[Array, "q c"],
    bias: Float[Array, "q c"],
    not_negative: Bool[Array, "q c"],
    reasons: dict[str, Bool[Array, "q c"]],
) -> dict[str, Float[Array, ""]]:
    count, columns = scores.shape
    kind = scores.dtype
    positive = jnp.diagonal(scores)
    hardest = jnp.max(jnp.where(not_negative, -jnp.inf, scores), axis=1)
    contrasted = jnp.isfinite(hardest)
    rows = jnp.maximum(jnp.sum(contrasted.astype(kind)), 1)
    pairs = float(max(count * (columns - 1), 1))  # Beyond int32 for a large batch.
    shares = {
        "masked" if reason == "any" else f"masked_by_{reason}": jnp.sum(mask.astype(kind)) / pairs
        for reason, mask in reasons.items()
    }
    log_weight = bias - 1
    bins = jnp.clip(jnp.floor(log_weight * BINS), 0, BINS - 1)
    return {
        "accuracy": jnp.mean((positive > hardest).astype(kind)),
        "positive_similarity": jnp.mean(positive),
        "hardest_negative": jnp.sum(jnp.where(contrasted, hardest, jnp.zeros_like(hardest))) / rows,
        "mean_weight": jnp.mean(jnp.exp(bias)),
        **shares,
        **{f"weight_share_{k}": jnp.mean((bins == k).astype(kind)) for k in range(BINS)},
    }
