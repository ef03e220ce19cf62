"""One tile of AGCL: logits, masks and their part of the sums, for rows against columns.

A tile is a block of queries (rows) against a block of candidates (columns). Everything that
`agcl_tiled` and `agcl_mesh` stream is defined here on [r c] blocks; the definition of the loss is
in `agcl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.objectives.agcl_kernels.products import Chosen, product
from afmrl_jax.objectives.bm25 import Form, TermFactors, table_scores, term_table
from afmrl_jax.types import Array, Bool, Float, Int

BINS = 8
"""Of the histogram of weights."""
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


class Rules(NamedTuple):
    """The settings of the loss, scalars; None switches a rule off."""

    temperature: Float[Array, ""]
    gamma: Float[Array, ""]
    delta: Float[Array, ""] | None
    agreement_rho: Float[Array, ""] | None
    agreement_epsilon: Float[Array, ""]


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


class Sums(NamedTuple):
    """Log-sum-exp of the negatives so far, total e^peak, and the further positives; each [n]."""

    peak: Float[Array, " n"]
    total: Float[Array, " n"]
    positives: Float[Array, " n"] | None
    """How many, the pair itself not counted."""
    positive_logits: Float[Array, " n"] | None


class Counts(NamedTuple):
    """What is observed of the first direction; int32 where it counts pairs; each [n ...]."""

    hardest: Float[Array, " n"]
    """Highest score of a negative, -inf without any."""
    masked: Int[Array, " n"]
    identity: Int[Array, " n"]
    margin: Int[Array, " n"]
    agreement: Int[Array, " n"]
    weight: Float[Array, " n"]
    above: Int[Array, "n edges"]
    """Pairs whose tanh(gamma B) reaches 1/8, ..., 7/8."""


class Pairs(NamedTuple):
    """A tile before any direction is chosen; all [r c]."""

    scores: Float[Array, "r c"]
    bm25: Float[Array, "r c"] | None
    reverse: Float[Array, "r c"] | None
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
    margin: Bool[Array, "r c"] | None
    agreement: Bool[Array, "r c"] | None


def compare(
    plan: Plan,
    rows: Side,
    cols: Side,
    table: Float[Array, "v c"] | None,
) -> Pairs:
    """Scores, BM25 and identity of a tile.

    Args:
        plan: of the program.
        rows: r queries.
        cols: c candidates.
        table: term weights of the candidates, as `term_table` makes them.
    """
    bm25 = reverse = None
    if plan.vocab:
        assert rows.factors is not None
        assert cols.factors is not None
        assert table is not None
        bm25 = table_scores(rows.factors.places, table, plan.bm25_form)
        if plan.symmetric:
            reverse = bm25
            if plan.exact_reverse:
                asked = term_table(rows.factors, plan.vocab)
                reverse = table_scores(cols.factors.places, asked, plan.bm25_form).T
    scores = product(rows.vectors, cols.vectors, (1, 1), plan.precision)
    return Pairs(scores, bm25, reverse, *identities(plan, rows, cols))


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


def direct(
    plan: Plan,
    rules: Rules,
    pairs: Pairs,
    bm25: Float[Array, "r c"] | None,
    positive: Float[Array, "#r #c"],
    own: Float[Array, "#r #c"] | None,
) -> Direction:
    """Logits and masks of one direction.

    Args:
        plan: of the program.
        rules: settings of the loss.
        pairs: the tile.
        bm25: of this direction.
        positive: score of each contrasted pair, [r 1] for the first direction, [1 c] for the other.
        own: BM25 of each contrasted pair, likewise.
    """
    # Positives are never masked; where others of the product are masked, only the pair is one.
    spared = pairs.same if plan.count_positives else pairs.own
    absent = pairs.own if plan.count_positives else pairs.same
    if pairs.real is not None:
        spared, absent = spared | ~pairs.real, absent | ~pairs.real
    margin = agreement = None
    if rules.delta is not None:
        margin = (pairs.scores > positive + rules.delta) & ~spared
        absent = absent | margin
    if rules.agreement_rho is not None and bm25 is not None and own is not None:
        agreement = (bm25 >= rules.agreement_rho * own) & (own > 0)
        agreement = agreement & (pairs.scores > positive - rules.agreement_epsilon) & ~spared
        absent = absent | agreement
    # Relative to the pair's: at a low temperature the whole logit would round away what counts.
    logits = (pairs.scores - positive) / rules.temperature
    if bm25 is not None and own is not None:
        logits = logits + (jnp.tanh(rules.gamma * bm25) - jnp.tanh(rules.gamma * own))
    return Direction(jnp.where(absent, -jnp.inf, logits), absent, margin, agreement)


def both(
    plan: Plan, rules: Rules, rows: Side, cols: Side, pairs: Pairs
) -> tuple[Direction, Direction | None]:
    """A tile as seen by its queries and, in a symmetric loss, by its candidates."""

    def lifted(x: jax.Array | None, axis: int) -> jax.Array | None:
        return None if x is None else jnp.expand_dims(x, axis)

    ask = direct(plan, rules, pairs, pairs.bm25, rows.positive[:, None], lifted(rows.own, 1))
    if not plan.symmetric:
        return ask, None
    answer = (cols.positive[None, :], lifted(cols.own, 0))
    return ask, direct(plan, rules, pairs, pairs.reverse, *answer)


def start_sums(plan: Plan, side: Side) -> Sums:
    """Nothing summed. The peak starts at the logit of the pair, 0, and so is always finite."""
    zero = jnp.zeros_like(side.positive)
    further = (zero, zero) if plan.count_positives else (None, None)
    return Sums(zero, zero, *further)


def start_counts(side: Side) -> Counts:
    """Nothing observed."""
    none = jnp.zeros(side.number.shape, jnp.int32)
    zero = jnp.zeros_like(side.positive)
    above = jnp.zeros((*none.shape, BINS - 1), jnp.int32)
    return Counts(jnp.full_like(zero, -jnp.inf), none, none, none, none, zero, above)


def add_sums(sums: Sums, found: Direction, pairs: Pairs, axis: int) -> Sums:
    """Online log-sum-exp: the sum so far is rescaled to the higher peak of both."""
    peak = jnp.maximum(sums.peak, jnp.max(found.logits, axis=axis))
    total = jnp.sum(jnp.exp(found.logits - jnp.expand_dims(peak, axis)), axis=axis)
    total = total + sums.total * jnp.exp(sums.peak - peak)
    if sums.positives is None or sums.positive_logits is None:
        return Sums(peak, total, None, None)
    further = pairs.same & ~pairs.own
    number = jnp.sum(further, axis=axis, dtype=total.dtype)
    logit = jnp.sum(jnp.where(further, found.logits, jnp.zeros_like(found.logits)), axis=axis)
    return Sums(peak, total, sums.positives + number, sums.positive_logits + logit)


def add_counts(plan: Plan, rules: Rules, counts: Counts, found: Direction, pairs: Pairs) -> Counts:
    """Count what the first direction masks, and how it weights."""

    def number(mask: jax.Array | None) -> jax.Array | int:
        return 0 if mask is None else jnp.sum(mask, axis=1, dtype=jnp.int32)

    # A further positive is in the sums, but no negative.
    negative = ~(found.absent | pairs.same)
    hardest = jnp.max(jnp.where(negative, pairs.scores, -jnp.inf), axis=1)
    further = pairs.same & ~pairs.own
    masked = ~negative & ~(pairs.same if plan.count_positives else pairs.own)
    if pairs.real is not None:
        masked = masked & pairs.real
    weight, above = counts.weight, counts.above
    if pairs.bm25 is not None:
        log_weight = jnp.tanh(rules.gamma * pairs.bm25)
        values = jnp.exp(1.0 + log_weight)
        edges = [log_weight >= edge / BINS for edge in range(1, BINS)]
        if pairs.real is not None:
            values = jnp.where(pairs.real, values, jnp.zeros_like(values))
            edges = [x & pairs.real for x in edges]
        weight = weight + jnp.sum(values, axis=1)
        above = above + jnp.stack([number(x) for x in edges], axis=1)
    return Counts(
        jnp.maximum(counts.hardest, hardest),
        counts.masked + number(masked),
        counts.identity + number(None if plan.count_positives else further),
        counts.margin + number(found.margin),
        counts.agreement + number(found.agreement),
        weight,
        above,
    )


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
