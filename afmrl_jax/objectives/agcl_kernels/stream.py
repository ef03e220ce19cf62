"""AGCL tile by tile on one device: sums in one pass, gradients in a second one.

Sides come cut into tiles: every leaf is [tiles, size, ...]. Candidates are the outer loop, so that
their table of term weights is made once, and queries the inner one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.objectives.agcl_kernels.products import product
from afmrl_jax.objectives.agcl_kernels.sums import (
    Counts,
    Sums,
    add_counts,
    add_sums,
    start_counts,
    start_sums,
)
from afmrl_jax.objectives.agcl_kernels.tile import (
    Plan,
    Rules,
    Side,
    both,
    compare,
    identities,
    tables_of,
    tile_gradient,
)
from afmrl_jax.types import Array, Float


class Kept(NamedTuple):
    """Logits of tiles with -inf where a pair is absent, leaves [columns, rows, r, c] or [r c]."""

    ask: jax.Array
    answer: jax.Array | None
    """Of the second direction."""


class Denominator(NamedTuple):
    """What the backward pass needs of a direction, leaves [tiles, size]: all that is saved."""

    log_total: Float[Array, "t n"]
    """Log-sum-exp over positives and negatives, less the logit of the pair; +inf where nothing is
    contrasted."""
    positives: Float[Array, "t n"] | None
    """Number of positives, the pair counted, +inf likewise; None where only pairs are positives."""
    log_mean: Float[Array, "t n"] | None
    """Log of the mean by which the weights of negatives are divided; None where they are not."""


def stream_sums(
    plan: Plan,
    rules: Rules,
    rows: Side,
    cols: Side,
    row_state: tuple[Sums, Counts],
    col_sums: Sums | None,
) -> tuple[tuple[Sums, Counts], Sums | None, Kept | None]:
    """Add every tile of `rows` against `cols` to the sums of both.

    The logits of all tiles come third, by columns and then rows, where the plan keeps them.

    Args:
        plan: of the program.
        rules: settings of the loss.
        rows: queries.
        cols: candidates.
        row_state: of the queries so far, see `start_rows`.
        col_sums: of the candidates so far; None for one direction.
    """

    def column(
        row_state: tuple[Sums, Counts], block: tuple[Side, Sums | None]
    ) -> tuple[tuple[Sums, Counts], tuple[Sums | None, Kept | None]]:
        here, sums = block
        tables = tables_of(plan, here)

        def row(
            sums: Sums | None, block: tuple[Side, tuple[Sums, Counts]]
        ) -> tuple[Sums | None, tuple[tuple[Sums, Counts], Kept | None]]:
            side, (row_sums, counts) = block
            pairs = compare(plan, side, here, tables)
            ask, answer = both(plan, rules, side, here, pairs)
            counts = add_counts(plan, counts, ask, pairs)
            if sums is not None and answer is not None:
                sums = add_sums(sums, answer, pairs, 0)
            state = add_sums(row_sums, ask, pairs, 1), counts
            kept = Kept(ask.logits, None if answer is None else answer.logits)
            return sums, (state, kept if plan.keep else None)

        sums, (row_state, kept) = jax.lax.scan(row, sums, (rows, row_state))
        return row_state, (sums, kept)

    row_state, (col_sums, kept) = jax.lax.scan(column, row_state, (cols, col_sums))
    return row_state, col_sums, kept


def start_rows(plan: Plan, rows: Side) -> tuple[Sums, Counts]:
    """What `stream_sums` starts from, for queries."""
    return start_sums(plan, rows), start_counts(rows)


def start_columns(plan: Plan, cols: Side) -> Sums | None:
    """What `stream_sums` starts from, for candidates."""
    return start_sums(plan, cols) if plan.symmetric else None


def stream_gradients(
    plan: Plan,
    rules: Rules,
    rows: Side,
    cols: Side,
    row_denominator: Denominator,
    col_denominator: Denominator | None,
    gradients: tuple[Float[Array, "t r d"], Float[Array, "u c d"]],
    kept: Kept | None = None,
) -> tuple[Float[Array, "t r d"], Float[Array, "u c d"]]:
    """Add every tile's part of sum_i L_i (of both directions) to the gradients by scores times tau.

    Tiles are computed again unless they were kept. What a pair's own score adds is left to the
    caller, which has it without a tile.

    Args:
        plan: of the program.
        rules: settings of the loss.
        rows: queries.
        cols: candidates.
        row_denominator: of the queries.
        col_denominator: of the candidates; None for one direction.
        gradients: so far, by queries and by candidates.
        kept: of all tiles, as `stream_sums` gave it.
    """

    def column(by_rows: jax.Array, block: tuple) -> tuple[jax.Array, jax.Array]:
        here, denominator, by_cols, kept = block
        tables = None if plan.keep else tables_of(plan, here)

        def row(number: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple:
            by_rows, by_cols = sums
            blocks = rows, row_denominator, kept
            side, own, tile = jax.tree.map(lambda x: x[number], blocks)
            if tile is None:
                ask, answer = both(plan, rules, side, here, compare(plan, side, here, tables))
                tile = Kept(ask.logits, None if answer is None else answer.logits)
            further = None
            if plan.count_positives:
                same, pair, _ = identities(plan, side, here)
                further = same & ~pair
            gradient = _gradient(tile, further, own, denominator)
            asked, offered = (x.vectors.astype(gradient.dtype) for x in (side, here))
            # Not stacked by a scan: that would hold the old and the new gradient of all queries.
            added = product(gradient, offered, (1, 0), plan.precision) + by_rows[number]
            by_rows = jax.lax.dynamic_update_index_in_dim(by_rows, added, number, 0)
            return by_rows, by_cols + product(gradient, asked, (0, 0), plan.precision)

        return jax.lax.fori_loop(0, by_rows.shape[0], row, (by_rows, by_cols))

    by_rows, by_cols = gradients
    return jax.lax.scan(column, by_rows, (cols, col_denominator, by_cols, kept))


def _gradient(
    tile: Kept,
    further: jax.Array | None,
    row_denominator: Denominator,
    col_denominator: Denominator | None,
) -> jax.Array:
    """Gradient of a tile by its logits, both directions added."""

    def one_way(logits: jax.Array, found: Denominator, axis: int) -> jax.Array:
        total, positives = found.log_total, found.positives
        if found.log_mean is not None:
            total = total + found.log_mean
        total = jnp.expand_dims(total, axis)
        lifted = None if positives is None else jnp.expand_dims(positives, axis)
        return tile_gradient(logits, further, total, lifted)

    gradient = one_way(tile.ask, row_denominator, 1)
    if tile.answer is not None and col_denominator is not None:
        gradient = gradient + one_way(tile.answer, col_denominator, 0)
    return gradient
