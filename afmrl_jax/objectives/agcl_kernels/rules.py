"""How a pair weighs and whether it stays: one rule, for every form of the loss.

The rule reads a block of pairs in one direction, be it a tile or the table of all pairs, and knows
nothing of where the block comes from or what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from afmrl_jax.types import Array, Bool, Float

PositiveWeight = Literal["own", "neutral"]
WeightedPairs = Literal["all", "agreeing"]


@dataclass(frozen=True)
class Weighting:
    """How attributes weigh pairs; fixed when a program is compiled.

    With w_ij = exp(1 + tanh(gamma B_ij)) and the weight of the pair itself `own`, attributes can
    only soften: what counts is w_ij / w_ii, and a pair's own lists nearly always match best. With
    `neutral`, positives weigh e, as pairs do that share no term, and negatives that share some are
    harder than in InfoNCE.
    """

    positive: PositiveWeight = "own"
    """Weight of positives: `own` as the paper has it, or `neutral`."""
    pairs: WeightedPairs = "all"
    """Negatives that attributes weigh: `all`, or the `agreeing` ones, B_ij >= rho B_ii > 0; the
    others then weigh e."""
    normalized: bool = False
    """Whether the weights of a query's negatives are divided by their mean over those that are not
    masked, and the positive weighs 1: the same push, moved to the negatives that weigh more."""

    def __post_init__(self) -> None:
        if self.positive not in get_args(PositiveWeight):
            raise ValueError(f"the positive's weight is 'own' or 'neutral', not {self.positive!r}")
        if self.pairs not in get_args(WeightedPairs):
            raise ValueError(f"weighted pairs are 'all' or 'agreeing', not {self.pairs!r}")
        if self.normalized and self.positive == "own":
            raise ValueError(
                "weights relative to their mean need a positive that has none of its own: set the "
                "positive's weight to 'neutral'"
            )


PAPER = Weighting()
"""Weights as published."""


class Criteria(NamedTuple):
    """The numbers of the rule, scalars; None switches a part off."""

    gamma: Float[Array, ""]
    delta: Float[Array, ""] | None = None
    agreement_rho: Float[Array, ""] | None = None
    agreement_epsilon: Float[Array, ""] | None = None
    teacher_share: Float[Array, ""] | None = None


class Evidence(NamedTuple):
    """What the rule reads of a block of pairs in one direction; all [r c]."""

    scores: Float[Array, "r c"]
    """Cosines of the embedder that is trained."""
    bm25: Float[Array, "r c"] | None
    """BM25 of the attributes, the contrasted side as the query; None: nothing is known of them."""
    weighed: Float[Array, "r c"] | None
    """The BM25 that weights are made of: `bm25`, or in a placebo that of other pairs."""
    teacher: Float[Array, "r c"] | None
    """Cosines of the teacher; None without one."""
    known: Bool[Array, "r c"] | None
    """Whether an oracle knows a pair to be no negative; None without one."""


class Own(NamedTuple):
    """The same of the contrasted pair, [r 1] in the first direction and [1 c] in the other."""

    score: Float[Array, "#r #c"]
    bm25: Float[Array, "#r #c"] | None
    teacher: Float[Array, "#r #c"] | None


class Verdict(NamedTuple):
    """What the rule says of a block."""

    log_weight: Float[Array, "r c"] | None
    """ln w less 1, 0 being neutral; None where all weigh the same."""
    own_log_weight: Float[Array, "#r #c"] | None
    """The same of the contrasted pair; None where it is neutral."""
    reasons: dict[str, Bool[Array, "r c"]]
    """Pairs that are left out, by reason: `margin`, `agreement`, `teacher`, `oracle`, as far as
    they are asked for. A pair may have several."""


def judge(
    weighting: Weighting,
    criteria: Criteria,
    evidence: Evidence,
    own: Own,
    spared: Bool[Array, "r c"],
) -> Verdict:
    """Weights and masks of a block.

    Args:
        weighting: how attributes weigh.
        criteria: the numbers of the rule.
        evidence: of the block.
        own: of the contrasted pairs.
        spared: pairs that are never masked: positives, and what is no pair.
    """
    log_weight = own_log_weight = None
    if evidence.weighed is not None and own.bm25 is not None:
        log_weight = _log_weight(weighting, criteria, evidence.weighed, own.bm25)
        if weighting.positive == "own":
            own_log_weight = _log_weight(weighting, criteria, own.bm25, own.bm25)
        else:
            log_weight = jnp.where(spared, jnp.zeros_like(log_weight), log_weight)
    reasons = {name: mask & ~spared for name, mask in _reasons(criteria, evidence, own).items()}
    return Verdict(log_weight, own_log_weight, reasons)


def _log_weight(
    weighting: Weighting, criteria: Criteria, bm25: jax.Array, own: jax.Array
) -> jax.Array:
    found = jnp.tanh(criteria.gamma * bm25)
    if weighting.pairs == "all":
        return found
    return jnp.where(_agrees(criteria, bm25, own), found, jnp.zeros_like(found))


def _agrees(criteria: Criteria, bm25: jax.Array, own: jax.Array) -> jax.Array:
    """Whether attributes agree; without any of its own, nothing agrees with a query."""
    assert criteria.agreement_rho is not None
    return (bm25 >= criteria.agreement_rho * own) & (own > 0)


def _reasons(criteria: Criteria, evidence: Evidence, own: Own) -> dict[str, jax.Array]:
    """Which pairs are no negatives, by reason, positives among them."""
    found: dict[str, jax.Array] = {}
    if criteria.delta is not None:
        found["margin"] = evidence.scores > own.score + criteria.delta
    if criteria.agreement_rho is not None and evidence.bm25 is not None and own.bm25 is not None:
        assert criteria.agreement_epsilon is not None
        agrees = _agrees(criteria, evidence.bm25, own.bm25)
        found["agreement"] = agrees & (evidence.scores > own.score - criteria.agreement_epsilon)
    if evidence.teacher is not None and own.teacher is not None:
        assert criteria.teacher_share is not None
        # For a positive above 0 this is share * own; below, the limit still lies under it.
        slack = (1.0 - criteria.teacher_share) * jnp.abs(own.teacher)
        found["teacher"] = evidence.teacher > own.teacher - slack
    if evidence.known is not None:
        found["oracle"] = evidence.known
    return found
