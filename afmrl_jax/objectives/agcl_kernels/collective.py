"""AGCL over the mesh: every device holds its queries, and candidates come to it.

Two ways with one result. In a `ring` a block of candidates, with its term factors, its ids, its
teacher's vectors and what it has summed so far, visits one device after the other and is home after
as many hops as there are devices: a device never holds more than two blocks. `gathered` brings all
candidates to every device at once: one collective and longer loops, for memory that grows with the
whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from afmrl_jax.objectives.agcl_kernels.stream import (
    Denominator,
    Kept,
    start_columns,
    start_rows,
    stream_gradients,
    stream_sums,
)
from afmrl_jax.objectives.agcl_kernels.sums import Counts, Sums
from afmrl_jax.objectives.agcl_kernels.tile import Plan, Rules, Side
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.types import Array, Float, PyTree

Placement = Literal["tiled", "ring", "gathered"]
Forward = tuple[Sums, Counts, Sums | None, Kept | None]
DATA = AXES[0]


def sums_of(
    plan: Plan, placement: Placement, mesh: Mesh | None, rules: Rules, rows: Side, cols: Side
) -> Forward:
    """Sums and counts of all queries, the sums of all candidates in a symmetric loss, kept tiles.

    Args:
        plan: of the program.
        placement: where candidates go; `tiled` is one device.
        mesh: whose `data` axis splits the tiles; None for the one of `jax.set_mesh`.
        rules: settings of the loss.
        rows: queries, leaves [tiles, size, ...].
        cols: candidates, likewise.
    """

    def alone(rules: Rules, rows: Side, cols: Side) -> Forward:
        starts = start_rows(plan, rows), start_columns(plan, cols)
        (sums, counts), answers, kept = stream_sums(plan, rules, rows, cols, *starts)
        return sums, counts, answers, kept

    def ring(rules: Rules, rows: Side, cols: Side) -> Forward:
        def hop(_: jax.Array, carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
            state, cols, answers = carry
            state, answers, _kept = stream_sums(plan, rules, rows, cols, state, answers)
            return state, *_onward((cols, answers))

        start: tuple[PyTree, ...] = start_rows(plan, rows), cols
        start = *start, start_columns(plan, cols)
        (sums, counts), _, answers = jax.lax.fori_loop(0, jax.lax.axis_size(DATA), hop, start)
        return sums, counts, answers, None

    def gathered(rules: Rules, rows: Side, cols: Side) -> Forward:
        sums, counts, answers, _ = alone(rules, rows, _gather(cols))
        if answers is not None:
            answers = jax.tree.map(partial(_own_part, like=cols.number), _combined(answers))
        return sums, counts, answers, None

    forms = {"tiled": alone, "ring": ring, "gathered": gathered}
    return _placed(forms[placement], placement, mesh)(rules, rows, cols)


def gradients_of(
    plan: Plan,
    placement: Placement,
    mesh: Mesh | None,
    rules: Rules,
    rows: Side,
    cols: Side,
    row_denominator: Denominator,
    col_denominator: Denominator | None,
    kept: Kept | None,
) -> tuple[Float[Array, "t r d"], Float[Array, "u c d"]]:
    """Gradients by queries and candidates, see `stream_gradients`; arguments as in `sums_of`."""

    def alone(
        rules: Rules, rows: Side, cols: Side, ask: PyTree, answer: PyTree, kept: PyTree
    ) -> tuple:
        start = _zeros(rows), _zeros(cols)
        return stream_gradients(plan, rules, rows, cols, ask, answer, start, kept)

    def ring(rules: Rules, rows: Side, cols: Side, ask: PyTree, answer: PyTree, _: None) -> tuple:
        def hop(_: jax.Array, carry: tuple) -> tuple:
            by_rows, by_cols, cols, answer = carry
            sides = rows, cols, ask, answer
            by_rows, by_cols = stream_gradients(plan, rules, *sides, (by_rows, by_cols))
            return by_rows, *_onward((by_cols, cols, answer))

        start = _zeros(rows), _zeros(cols), cols, answer
        by_rows, by_cols, *_ = jax.lax.fori_loop(0, jax.lax.axis_size(DATA), hop, start)
        return by_rows, by_cols

    def gathered(
        rules: Rules, rows: Side, cols: Side, ask: PyTree, answer: PyTree, _: None
    ) -> tuple:
        by_rows, by_cols = alone(rules, rows, _gather(cols), ask, _gather(answer), None)
        return by_rows, jax.lax.psum_scatter(by_cols, DATA, tiled=True)

    forms: dict[str, Callable] = {"tiled": alone, "ring": ring, "gathered": gathered}
    place = _placed(forms[placement], placement, mesh)
    return place(rules, rows, cols, row_denominator, col_denominator, kept)


def _placed(form: Callable, placement: Placement, mesh: Mesh | None) -> Callable:
    if placement == "tiled":
        return form

    def split(rules: Rules, *sides: PyTree) -> PyTree:
        specs = (PartitionSpec(), *(PartitionSpec(DATA) for _ in sides))
        # Gradients are written by hand, so nothing is transposed through the collectives, and
        # what varies over the mesh need not be tracked.
        return jax.shard_map(
            form, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DATA), check_vma=False
        )(rules, *sides)

    return split


def _onward(tree: PyTree) -> PyTree:
    """Everything to the next device of the ring."""
    size = jax.lax.axis_size(DATA)
    return jax.lax.ppermute(tree, DATA, [(i, (i + 1) % size) for i in range(size)])


def _gather(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.all_gather(x, DATA, tiled=True), tree)


def _combined(parts: Sums) -> Sums:
    """The sums over all devices of what each summed over its own queries."""
    peak = jax.lax.pmax(parts.peak, DATA)
    total = jax.lax.psum(parts.total * jnp.exp(parts.peak - peak), DATA)
    further = [None if x is None else jax.lax.psum(x, DATA) for x in parts[2:]]
    return Sums(peak, total, *further)


def _own_part(x: jax.Array, like: jax.Array) -> jax.Array:
    """The device's part of an array that all hold."""
    size = like.shape[0]
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(DATA) * size, size)


def _zeros(side: Side) -> jax.Array:
    return jnp.zeros(side.vectors.shape, side.positive.dtype)
