"""Attribute-guided contrastive learning (AGCL): InfoNCE with weights and a false-negative mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float, Int
from afmrl_jax.models.attention import MASKED


def agcl_loss(
    queries: Float[Array, "b d"],
    candidates: Float[Array, "c d"],
    bm25: Float[Array, "b c"],
    product_ids: Int[Array, " b"],
    *,
    candidate_product_ids: Int[Array, " c"] | None = None,
    temperature: float = 0.05,
    gamma: float = 0.1,
    delta: float | None = None,
    agreement_rho: float | None = None,
    agreement_epsilon: float = 0.1,
    symmetric: bool = True,
    bm25_reverse: Float[Array, "b b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The AGCL loss of a batch of query/candidate pairs; pair i is on the diagonal.

    With s_ij the cosine of query i and candidate j and B_ij the BM25 score of their attributes:

        w_ij = exp(1 + tanh(gamma B_ij))
        N_i  = { j != i : j is another product, and s_ij <= s_ii + delta,
                 and not (B_ij >= rho B_ii > 0 and s_ij > s_ii - epsilon) }
        L_i  = -log( w_ii e^{s_ii/tau} / (w_ii e^{s_ii/tau} + sum_{j in N_i} w_ij e^{s_ij/tau}) )

    Weights and mask are constants for the gradient, and the diagonal is never masked. gamma = 0
    without margins is InfoNCE over different products: all weights are then equal and cancel.
    A query without attributes (B_ii = 0) cannot agree with anything.

    Example:
        >>> q = jnp.eye(2)
        >>> loss, _ = agcl_loss(q, q, jnp.zeros((2, 2)), jnp.arange(2), temperature=0.5, gamma=0.0)
        >>> round(float(loss), 4)  # log(1 + e^-2)
        0.1269

    Args:
        queries: unit vectors [b d].
        candidates: unit vectors [c d]; behind the positives of the queries may stand c - b hard
            negatives, which all queries are contrasted with and which are no queries themselves.
        bm25: [b c], attributes of query i against attributes of candidate j.
        product_ids: [b]; equal ids are never each other's negatives.
        candidate_product_ids: [c]; None where there are no hard negatives.
        temperature: tau.
        gamma: scale of BM25 inside tanh; the paper's is 1.
        delta: margin above the positive at which a negative is held to be false; None for off.
        agreement_rho: share of the own BM25 score at which attributes agree; None for off.
        agreement_epsilon: how far below the positive an agreeing pair may score and still leave.
        symmetric: also contrast candidates with queries; the loss is the mean of both directions.
        bm25_reverse: [b b], attributes of candidate i against attributes of query j, for the
            second direction. None: `bm25` transposed, which differs a little, for BM25 normalises
            by the length of the text that is searched.

    Returns:
        The mean loss, float32, and metrics of the first direction: `accuracy` (share of queries
        whose positive beats every negative left), `positive_similarity`, `hardest_negative` (mean
        over the queries that have one), `masked` and its three overlapping reasons
        `masked_by_identity`, `masked_by_margin`, `masked_by_agreement` (shares of the pairs off
        the diagonal), and `mean_weight`.

    Raises:
        ValueError: the shapes do not describe one batch of pairs.

    Reference: AFMRL, arXiv 2604.20135, section on AGCL.
    """
    count = queries.shape[0]
    candidate_ids = product_ids if candidate_product_ids is None else candidate_product_ids
    _check_shapes(queries, candidates, bm25, product_ids, candidate_ids, bm25_reverse)
    scores = jnp.dot(
        queries.astype(jnp.float32),
        candidates.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    options = (temperature, gamma, delta, agreement_rho, agreement_epsilon)
    same = product_ids[:, None] == candidate_ids[None, :]
    loss, metrics = _one_direction(scores, bm25, same, *options)
    if symmetric:
        reverse = bm25[:, :count].T if bm25_reverse is None else bm25_reverse
        back, _ = _one_direction(scores[:, :count].T, reverse, same[:, :count].T, *options)
        loss = (loss + back) / 2
    return loss, {"loss": loss, **metrics}


def _check_shapes(
    queries: jax.Array,
    candidates: jax.Array,
    bm25: jax.Array,
    product_ids: jax.Array,
    candidate_ids: jax.Array,
    bm25_reverse: jax.Array | None,
) -> None:
    count, columns = queries.shape[0], candidates.shape[0]
    reverse = (count, count) if bm25_reverse is None else bm25_reverse.shape
    fits = queries.shape[1:] == candidates.shape[1:] and queries.ndim == 2 and columns >= count
    fits = fits and bm25.shape == (count, columns) and reverse == (count, count)
    if not (fits and product_ids.shape == (count,) and candidate_ids.shape == (columns,)):
        raise ValueError(
            f"queries {queries.shape} and candidates {candidates.shape} must both be [b d] (with "
            f"hard negatives [c d]), bm25 {bm25.shape} [b c] (reverse {reverse} [b b]), "
            f"product_ids {product_ids.shape} [b], candidate_ids {candidate_ids.shape} [c]"
        )


def _one_direction(
    scores: Float[Array, "b c"],
    bm25: Float[Array, "b c"],
    same: Bool[Array, "b c"],
    temperature: float,
    gamma: float,
    delta: float | None,
    agreement_rho: float | None,
    agreement_epsilon: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of rows against columns."""
    fixed = jax.lax.stop_gradient(scores)
    bm25 = jax.lax.stop_gradient(bm25.astype(jnp.float32))
    diagonal = jnp.eye(scores.shape[0], scores.shape[1], dtype=bool)
    reasons = _false_negatives(fixed, bm25, same, delta, agreement_rho, agreement_epsilon)
    masked = reasons["identity"] | reasons["margin"] | reasons["agreement"]
    bias = 1.0 + jnp.tanh(gamma * bm25)
    logits = jnp.where(masked, MASKED, scores / temperature + bias)
    loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))
    return loss, _metrics(fixed, bias, masked | diagonal, reasons | {"any": masked})


def _false_negatives(
    scores: Float[Array, "b c"],
    bm25: Float[Array, "b c"],
    same: Bool[Array, "b c"],
    delta: float | None,
    agreement_rho: float | None,
    agreement_epsilon: float,
) -> dict[str, Bool[Array, "b c"]]:
    """Which pairs leave the denominator, by reason; a pair may have several."""
    off_diagonal = ~jnp.eye(scores.shape[0], scores.shape[1], dtype=bool)
    positive, own_bm25 = jnp.diagonal(scores)[:, None], jnp.diagonal(bm25)[:, None]
    margin = agreement = jnp.zeros_like(same)
    if delta is not None:
        margin = scores > positive + delta
    if agreement_rho is not None:
        agreement = (bm25 >= agreement_rho * own_bm25) & (own_bm25 > 0.0)
        agreement = agreement & (scores > positive - agreement_epsilon)
    found = {"identity": same, "margin": margin, "agreement": agreement}
    return {reason: mask & off_diagonal for reason, mask in found.items()}


def _metrics(
    scores: Float[Array, "b c"],
    bias: Float[Array, "b c"],
    not_negative: Bool[Array, "b c"],
    reasons: dict[str, Bool[Array, "b c"]],
) -> dict[str, Float[Array, ""]]:
    count = scores.shape[0]
    positive = jnp.diagonal(scores)
    hardest = jnp.max(jnp.where(not_negative, -jnp.inf, scores), axis=1)
    contrasted = jnp.isfinite(hardest)
    rows = jnp.maximum(jnp.sum(contrasted.astype(jnp.float32)), 1.0)
    pairs = max(scores.size - count, 1)
    shares = {
        "masked" if reason == "any" else f"masked_by_{reason}": jnp.sum(mask.astype(jnp.float32))
        / pairs
        for reason, mask in reasons.items()
    }
    return {
        "accuracy": jnp.mean((positive > hardest).astype(jnp.float32)),
        "positive_similarity": jnp.mean(positive),
        "hardest_negative": jnp.sum(jnp.where(contrasted, hardest, 0.0)) / rows,
        "mean_weight": jnp.mean(jnp.exp(bias)),
        **shares,
    }
