"""One tile of AGCL: logits, masks and their part of the sums, for rows against columns.

A tile is a block of queries (rows) against a block of candidates (columns). Everything that the
streamed forms add up is defined here on [r c] blocks; which pairs stay and how they weigh is said
in `rules`, and the definition of the loss in `agcl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from afmrl_jax.objectives.agcl_kernels.products import Chosen, product
from afmrl_jax.objectives.agcl_kernels.rules import (
    PAPER,
    Criteria,
    Evidence,
    Own,
    Verdict,
    Weighting,
    judge,
)
from afmrl_jax.objectives.bm25 import Form, TermFactors, table_scores, term_table
from afmrl_jax.types import Array, Bool, Float, Int

PADDED_ROW, PADDED_COLUMN = -1, -2
"""Indices of padding; they differ, so that no padding is a pair."""


@dataclass(frozen=True)
class Plan:
    """What is fixed when a program is compiled."""

    symmetric: bool
    count_positives: bool
    """Whether other candidates of the same product are positives too, and not masked."""
    exact_reverse: bool
    """Whether the second direction has its own BM25, and not the first's transposed."""
    bm25_form: Form
    vocab: int
    """Number of terms; 0 where nothing is weighted."""
    precision: Chosen = "float32"
    """Of products of vectors."""
    padded: bool = False
    """Whether some rows or columns are padding."""
    keep: bool = False
    """Whether the logits of all tiles are kept for the backward pass; on one device only."""
    weighting: Weighting = PAPER

    @property
    def normalized(self) -> bool:
        """Whether weights are divided by their mean; without attributes all are equal."""
        return self.weighting.normalized and self.vocab > 0


class Rules(NamedTuple):
    """The settings of the loss, scalars."""

    temperature: Float[Array, ""]
    criteria: Criteria


class Shuffled(NamedTuple):
    """Of the placebo: the text whose attributes stand in for one's own in weights; each [n ...]."""

    factors: TermFactors
    source: Int[Array, " n"]
    """Number of that text."""
    swapped: Float[Array, " n"]
    """BM25 of this text as the query and the one of the other side that stands in for its pair's,
    in the direction in which this side asks."""


class Side(NamedTuple):
    """Queries or candidates with all that a tile needs to know of them; each leaf is [n ...]."""

    vectors: Float[Array, "n d"]
    products: Int[Array, " n"]
    number: Int[Array, " n"]
    """Number of the pair; from q on a hard negative; negative for padding."""
    positive: Float[Array, " n"]
    """Score of the pair, s_ii."""
    own: Float[Array, " n"] | None
    """BM25 of the pair in the direction in which this side asks."""
    factors: TermFactors | None
    teacher: Float[Array, "n t"] | None = None
    """Vectors of the teacher."""
    own_teacher: Float[Array, " n"] | None = None
    """Score of the pair by the teacher."""
    known: Int[Array, " n"] | None = None
    """The oracle's id: two of one id are no negatives of each other."""
    shuffled: Shuffled | None = None


class Tables(NamedTuple):
    """Term weights of a block of candidates, as `term_table` makes them."""

    own: Float[Array, "v c"]
    shuffled: Float[Array, "v c"] | None
    """Of the texts that stand in for theirs."""


class Pairs(NamedTuple):
    """A tile before any direction is chosen; all [r c]."""

    ask: Evidence
    """As queries see it."""
    answer: Evidence | None
    """As candidates see it, in a symmetric loss."""
    same: Bool[Array, "r c"]
    """Same product, or the pair itself."""
    own: Bool[Array, "r c"]
    """The pair itself."""
    real: Bool[Array, "r c"] | None
    """Neither is padding; None where there is none."""


class Direction(NamedTuple):
    """A tile as one direction sees it; all [r c]."""

    logits: Float[Array, "r c"]
    """Less the logit of the contrasted pair; -inf where a pair is absent."""
    absent: Bool[Array, "r c"]
    """Not in the sums: false negatives, padding, and the pair itself, which is added at the end."""
    verdict: Verdict


def compare(plan: Plan, rows: Side, cols: Side, tables: Tables | None) -> Pairs:
    """Scores, BM25, teacher and identity of a tile.

    Args:
        plan: of the program.
        rows: r queries.
        cols: c candidates.
        tables: of the candidates, see `tables_of`.
    """
    same, own, real = identities(plan, rows, cols)
    scores = product(rows.vectors, cols.vectors, (1, 1), plan.precision)
    teacher = known = None
    if rows.teacher is not None and cols.teacher is not None:
        teacher = product(rows.teacher, cols.teacher, (1, 1), plan.precision)
    if rows.known is not None and cols.known is not None:
        known = rows.known[:, None] == cols.known[None, :]
    bm25 = reverse = weighed = weighed_reverse = None
    if tables is not None:
        assert rows.factors is not None
        bm25 = reverse = table_scores(rows.factors.places, tables.own, plan.bm25_form)
        if plan.symmetric and plan.exact_reverse:
            reverse = _reversed(plan, rows.factors, cols)
        weighed, weighed_reverse = bm25, reverse
        if tables.shuffled is not None:
            weighed, weighed_reverse = _shuffled(plan, rows, cols, tables)
            # The pair itself weighs by its own lists.
            weighed = jnp.where(own, bm25, weighed)
            weighed_reverse = jnp.where(own, reverse, weighed_reverse)
    ask = Evidence(scores, bm25, weighed, teacher, known)
    answer = ask._replace(bm25=reverse, weighed=weighed_reverse) if plan.symmetric else None
    return Pairs(ask, answer, same, own, real)


def tables_of(plan: Plan, cols: Side) -> Tables | None:
    """Term weights of a block of candidates; None where nothing is weighed."""
    if cols.factors is None:
        return None
    shuffled = cols.shuffled
    return Tables(
        term_table(cols.factors, plan.vocab),
        None if shuffled is None else term_table(shuffled.factors, plan.vocab),
    )


def _reversed(plan: Plan, rows: TermFactors, cols: Side) -> Float[Array, "r c"]:
    """BM25 of candidates as queries and the texts of rows as documents."""
    assert cols.factors is not None
    return table_scores(cols.factors.places, term_table(rows, plan.vocab), plan.bm25_form).T


def _shuffled(
    plan: Plan, rows: Side, cols: Side, tables: Tables
) -> tuple[Float[Array, "r c"], Float[Array, "r c"]]:
    """BM25 of both directions with other texts in place of those that do not ask.

    Query i meets at candidate j the text of candidate p(j). Where that is its own, at p(j) = i, it
    meets the text p(i) that would have stood at the pair: so p permutes the negatives of each row.
    """
    own, other = rows.shuffled, cols.shuffled
    assert own is not None
    assert other is not None
    assert rows.factors is not None
    assert tables.shuffled is not None
    asked = table_scores(rows.factors.places, tables.shuffled, plan.bm25_form)
    swap = other.source[None, :] == rows.number[:, None]
    asked = jnp.where(swap, own.swapped[:, None], asked)
    if not plan.symmetric:
        return asked, asked
    if plan.exact_reverse:
        answered = _reversed(plan, own.factors, cols)
    else:
        answered = table_scores(own.factors.places, tables.own, plan.bm25_form)
    swap = own.source[:, None] == cols.number[None, :]
    return asked, jnp.where(swap, other.swapped[None, :], answered)


def identities(
    plan: Plan, rows: Side, cols: Side
) -> tuple[Bool[Array, "r c"], Bool[Array, "r c"], Bool[Array, "r c"] | None]:
    """`same`, `own` and `real` of `Pairs`."""
    real = None
    own = rows.number[:, None] == cols.number[None, :]
    same = own | (rows.products[:, None] == cols.products[None, :])
    if plan.padded:
        real = (rows.number[:, None] >= 0) & (cols.number[None, :] >= 0)
        same = same & real
    return same, own, real


def direct(plan: Plan, rules: Rules, pairs: Pairs, evidence: Evidence, own: Own) -> Direction:
    """Logits and masks of one direction.

    Args:
        plan: of the program.
        rules: settings of the loss.
        pairs: the tile.
        evidence: of this direction.
        own: of the contrasted pairs.
    """
    # Positives are never masked; where others of the product are masked, only the pair is one.
    spared = pairs.same if plan.count_positives else pairs.own
    absent = pairs.own if plan.count_positives else pairs.same
    if pairs.real is not None:
        spared, absent = spared | ~pairs.real, absent | ~pairs.real
    verdict = judge(plan.weighting, rules.criteria, evidence, own, spared)
    for mask in verdict.reasons.values():
        absent = absent | mask
    # Relative to the pair's: at a low temperature the whole logit would round away what counts.
    logits = (evidence.scores - own.score) / rules.temperature
    if verdict.log_weight is not None:
        bias = verdict.log_weight
        if verdict.own_log_weight is not None:
            bias = bias - verdict.own_log_weight
        logits = logits + bias
    return Direction(jnp.where(absent, -jnp.inf, logits), absent, verdict)


def both(
    plan: Plan, rules: Rules, rows: Side, cols: Side, pairs: Pairs
) -> tuple[Direction, Direction | None]:
    """A tile as seen by its queries and, in a symmetric loss, by its candidates."""

    def own(side: Side, axis: int) -> Own:
        own_bm25, own_teacher = (
            None if x is None else jnp.expand_dims(x, axis) for x in (side.own, side.own_teacher)
        )
        return Own(jnp.expand_dims(side.positive, axis), own_bm25, own_teacher)

    ask = direct(plan, rules, pairs, pairs.ask, own(rows, 1))
    if pairs.answer is None:
        return ask, None
    return ask, direct(plan, rules, pairs, pairs.answer, own(cols, 0))


def tile_gradient(
    logits: Float[Array, "r c"],
    further: Bool[Array, "r c"] | None,
    denominator: Float[Array, "#r #c"],
    positives: Float[Array, "#r #c"] | None,
) -> Float[Array, "r c"]:
    """Gradient of one direction's losses by the logits, the pair itself left out.

    Args:
        logits: of the tile in this direction, -inf where a pair is absent.
        further: positives beside the pair itself; None where it is the only one.
        denominator: log-sum-exp over positives and negatives, +inf where nothing is contrasted.
        positives: number of positives, the pair counted, +inf likewise; None for pairs alone.
    """
    share = jnp.exp(logits - denominator)
    if positives is None or further is None:
        return share
    return share - jnp.where(further, 1.0 / positives, jnp.zeros_like(share))
