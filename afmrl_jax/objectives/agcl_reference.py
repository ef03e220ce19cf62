"""The dense twin of the streamed AGCL kernels: the definition, with every table of pairs whole.

`agcl_loss_reference` is the equation for a reader, and for tests of a kernel of one's own;
`dense_loss` is what it and `agcl_loss(form="dense")` compute.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.objectives.agcl_kernels.products import accumulator
from afmrl_jax.objectives.agcl_kernels.rules import (
    PAPER,
    Criteria,
    Evidence,
    Own,
    Weighting,
    judge,
)
from afmrl_jax.objectives.agcl_kernels.sides import Batch
from afmrl_jax.objectives.agcl_kernels.sums import BINS
from afmrl_jax.objectives.bm25 import Bm25Terms, bm25_scores
from afmrl_jax.types import Array, Bool, Float, Int


def agcl_loss_reference(
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    bm25: Bm25Terms | Float[Array, "q c"] | None,
    product_ids: Int[Array, " q"],
    *,
    candidate_product_ids: Int[Array, " c"] | None = None,
    temperature: float = 0.05,
    gamma: float = 0.1,
    delta: float | None = None,
    agreement_rho: float | None = None,
    agreement_epsilon: float = 0.1,
    symmetric: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The AGCL loss, literally: slow, memory of every pair, and easy to check by eye.

    With s_ij the cosine of query i and candidate j, and B_ij the BM25 score of their attributes:

        w_ij = exp(1 + tanh(gamma B_ij))
        N_i  = { j != i : j is another product, and s_ij <= s_ii + delta,
                 and not (B_ij >= rho B_ii > 0 and s_ij > s_ii - epsilon) }
        L_i  = -log( w_ii e^{s_ii/tau} / (w_ii e^{s_ii/tau} + sum_{j in N_i} w_ij e^{s_ij/tau}) )

    The loss is the mean of L_i; the symmetric one is its mean with that of the candidates of
    pairs, contrasted with all queries. `w` and `N` are constants for the gradient.

    `agcl_loss` gives the same value and gradient without ever holding a table of all pairs.

    Example:
        >>> q = jnp.eye(2)
        >>> loss, _ = agcl_loss_reference(q, q, None, jnp.arange(2), temperature=0.5, gamma=0.0)
        >>> round(float(loss), 4)  # log(1 + e^-2)
        0.1269

    Args:
        queries: unit vectors [q d].
        candidates: unit vectors [c d], c >= q; candidate i belongs to query i, and those from q on
            are hard negatives.
        bm25: attribute terms of both sides, or scores [q c]; None for equal weights.
        product_ids: int32 [q].
        candidate_product_ids: int32 [c]; needed where there are hard negatives.
        temperature: tau, positive.
        gamma: scale of BM25 inside tanh.
        delta: margin above the positive at which a negative is held to be false; None for off.
        agreement_rho: share of the own BM25 score at which attributes agree; None for off.
        agreement_epsilon: how far below the positive an agreeing pair may score and still leave.
        symmetric: whether candidates are contrasted with queries, too.

    Returns:
        The mean loss, and the metrics of `agcl_loss`.

    Reference: AFMRL, arXiv 2604.20135, section on AGCL.
    """
    queries, candidates, product_ids = map(jnp.asarray, (queries, candidates, product_ids))
    if candidate_product_ids is None:
        candidate_product_ids = product_ids
    wide = accumulator(queries)
    if bm25 is None:
        scores = jnp.zeros((len(queries), len(candidates)), wide)
    elif isinstance(bm25, Bm25Terms):
        scores = bm25_scores(*bm25)
    else:
        scores = jnp.asarray(bm25)

    def optional(x: float | None) -> jax.Array | None:
        return None if x is None else jnp.asarray(x, wide)

    criteria = Criteria(
        jnp.asarray(gamma, wide),
        optional(delta),
        optional(agreement_rho),
        jnp.asarray(agreement_epsilon, wide),
    )
    batch = Batch(product_ids, jnp.asarray(candidate_product_ids), None, criteria)
    return dense_loss(
        queries,
        candidates,
        jnp.asarray(temperature, wide),
        scores,
        None,
        batch,
        symmetric=symmetric,
        count_positives=False,
    )


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
    weighting: Weighting = PAPER,
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
        weighting: how attributes weigh.
    """
    wide, count = accumulator(queries), queries.shape[0]
    scores = _cosines(queries, candidates, wide)
    bm25 = bm25.astype(wide)
    same = _equal(batch.products, batch.candidate_products)
    teacher = None if batch.teacher is None else _cosines(*batch.teacher, wide)
    known = None if batch.oracle is None else _equal(*batch.oracle)
    order = (None, None) if batch.placebo is None else batch.placebo
    how = (temperature, batch.criteria, weighting, count_positives)
    evidence = Evidence(scores, bm25, _shuffled(bm25, order[1]), teacher, known)
    loss, metrics = _one_direction(evidence, same, *how)
    if symmetric:
        reverse = bm25[:, :count].T if bm25_reverse is None else bm25_reverse.astype(wide)
        others = (None if x is None else x[:, :count].T for x in (teacher, known))
        weighed = _shuffled(reverse, order[0])
        evidence = Evidence(scores[:, :count].T, reverse, weighed, *others)
        back, _ = _one_direction(evidence, same[:, :count].T, *how)
        loss = (loss + back) / 2
    return loss, {"loss": loss, **metrics}


def _cosines(
    queries: Float[Array, "q d"], candidates: Float[Array, "c d"], wide: jnp.dtype
) -> Float[Array, "q c"]:
    exact = jax.lax.Precision.HIGHEST
    return jnp.dot(queries.astype(wide), candidates.astype(wide).T, precision=exact)


def _equal(queries: Int[Array, " q"], candidates: Int[Array, " c"]) -> Bool[Array, "q c"]:
    return queries[:, None] == candidates[None, :]


def _shuffled(bm25: Float[Array, "q c"], order: Int[Array, " c"] | None) -> Float[Array, "q c"]:
    """The scores of each row in another order of its negatives, the pair's in its place.

    At column j stands the score of column p(j), and where that is the pair's, at p(j) = i, the one
    of column p(i).
    """
    if order is None:
        return bm25
    rows = jnp.arange(bm25.shape[0], dtype=order.dtype)
    swapped = bm25[rows, order[rows]]
    found = jnp.where(order[None, :] == rows[:, None], swapped[:, None], bm25[:, order])
    pair = jnp.eye(bm25.shape[0], bm25.shape[1], dtype=bool)
    return jnp.where(pair, bm25, found)


def _one_direction(
    evidence: Evidence,
    same: Bool[Array, "q c"],
    temperature: Float[Array, ""],
    criteria: Criteria,
    weighting: Weighting,
    count_positives: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss and metrics of rows against columns; the pairs are on the diagonal."""
    scores = evidence.scores
    criteria, evidence = jax.lax.stop_gradient((criteria, evidence))
    fixed = evidence.scores
    pair = jnp.eye(scores.shape[0], scores.shape[1], dtype=bool)
    positive = pair | same if count_positives else pair
    own_bm25, own_teacher = (
        None if x is None else jnp.diagonal(x)[:, None] for x in (evidence.bm25, evidence.teacher)
    )
    own = Own(jnp.diagonal(fixed)[:, None], own_bm25, own_teacher)
    verdict = judge(weighting, criteria, evidence, own, positive)
    none = jnp.zeros_like(same)
    reasons = {"identity": same & ~positive, "margin": none, "agreement": none} | verdict.reasons
    masked = none
    for mask in reasons.values():
        masked = masked | mask
    assert verdict.log_weight is not None
    bias = shown = 1.0 + verdict.log_weight
    if weighting.normalized:
        bias = jnp.where(positive, bias, bias - _log_mean(verdict.log_weight, masked | positive))
    logits = jnp.where(masked, MASKED, scores / temperature + bias)
    log_shares = jax.nn.log_softmax(logits, axis=1)
    chosen = jnp.where(positive, log_shares, jnp.zeros_like(log_shares))
    loss = -jnp.mean(jnp.sum(chosen, axis=1) / jnp.sum(positive, axis=1, dtype=chosen.dtype))
    return loss, _metrics(fixed, shown, masked | positive | same, reasons | {"any": masked})


def _log_mean(log_weight: Float[Array, "q c"], absent: Bool[Array, "q c"]) -> Float[Array, "q 1"]:
    """Log of the mean weight of each row's negatives, [q 1]; 0 without any."""
    number = jnp.sum(~absent, axis=1, keepdims=True, dtype=log_weight.dtype)
    weights = jnp.where(absent, jnp.zeros_like(log_weight), jnp.exp(log_weight))
    mean = jnp.sum(weights, axis=1, keepdims=True) / jnp.maximum(number, 1)
    return jnp.log(jnp.where(number > 0, mean, jnp.ones_like(mean)))


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
    bins = jnp.clip(jnp.floor(jnp.abs(log_weight) * BINS), 0, BINS - 1)
    return {
        "accuracy": jnp.mean((positive > hardest).astype(kind)),
        "positive_similarity": jnp.mean(positive),
        "hardest_negative": jnp.sum(jnp.where(contrasted, hardest, jnp.zeros_like(hardest))) / rows,
        "mean_weight": jnp.mean(jnp.exp(bias)),
        **shares,
        **{f"weight_share_{k}": jnp.mean((bins == k).astype(kind)) for k in range(BINS)},
    }
