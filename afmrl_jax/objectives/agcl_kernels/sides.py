"""From a batch to tiles: both sides with all that a tile needs, padded and cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from afmrl_jax.objectives.agcl_kernels.collective import Placement
from afmrl_jax.objectives.agcl_kernels.products import accumulator
from afmrl_jax.objectives.agcl_kernels.rules import Criteria
from afmrl_jax.objectives.agcl_kernels.tile import (
    PADDED_COLUMN,
    PADDED_ROW,
    Plan,
    Rules,
    Shuffled,
    Side,
)
from afmrl_jax.objectives.bm25 import Bm25Terms, TermFactors, own_scores, term_factors
from afmrl_jax.types import Array, Float, Int


class Pairwise(NamedTuple):
    """Something of every query and of every candidate."""

    queries: jax.Array
    """[q ...]"""
    candidates: jax.Array
    """[c ...], of the pairs first."""


class Batch(NamedTuple):
    """All that the loss reads beside the vectors and tau; nothing of it has a gradient."""

    products: Int[Array, " q"]
    candidate_products: Int[Array, " c"]
    terms: Bm25Terms | None
    criteria: Criteria
    teacher: Pairwise | None = None
    """Unit vectors of a frozen embedder, float [q t] and [c t]."""
    oracle: Pairwise | None = None
    """Ids, int [q] and [c]: two of one id are no negatives of each other."""
    placebo: Pairwise | None = None
    """Which text stands in for each, int [q] and [c], permutations: for a query as the document of
    the second direction, for a candidate as that of the first."""


@dataclass(frozen=True)
class Stream:
    """How a batch is cut and where its parts go."""

    plan: Plan
    placement: Placement
    mesh: Mesh | None
    shards: int
    tile: tuple[int, int]
    """Rows and columns of a tile."""


def tile_length(count: int, shards: int, wanted: int) -> int:
    """Length of tiles of at most `wanted`, so that the fewest rows are padding.

    Example:
        >>> tile_length(1000, 1, 512), tile_length(4096, 8, 1024)
        (500, 512)
    """
    part = max(math.ceil(count / shards), 1)
    return math.ceil(part / math.ceil(part / wanted))


def padding(count: int, shards: int, length: int) -> int:
    """Rows to add so that every shard has the same number of whole tiles."""
    return -count % (shards * length)


def sides_of(
    stream: Stream,
    queries: Float[Array, "q d"],
    candidates: Float[Array, "c d"],
    temperature: Float[Array, ""],
    batch: Batch,
) -> tuple[Rules, Side, Side]:
    """Rules, and both sides padded and cut into tiles."""
    wide, count = accumulator(queries), queries.shape[0]
    positive = _pair_scores(queries, candidates, wide)
    ask: TermFactors | None = None
    answer: TermFactors | None = None
    own = own_reverse = None
    if batch.terms is not None:
        ask = term_factors(batch.terms.statistics, batch.terms.query)
        answer = term_factors(batch.terms.statistics, batch.terms.candidate)
        pairs = _first(answer, count)
        own = own_scores(ask, pairs).astype(wide)
        own_reverse = own_scores(pairs, ask).astype(wide) if stream.plan.exact_reverse else own
    beyond = partial(jnp.pad, pad_width=(0, candidates.shape[0] - count))
    numbers = jnp.arange(candidates.shape[0], dtype=jnp.int32)
    rows = Side(queries, batch.products, numbers[:count], positive, own, ask)
    cols = Side(
        candidates,
        batch.candidate_products,
        numbers,
        beyond(positive),
        None if own_reverse is None else beyond(own_reverse),
        answer,
    )
    if batch.teacher is not None:
        taught = _pair_scores(*batch.teacher, wide)
        rows = rows._replace(teacher=batch.teacher.queries, own_teacher=taught)
        cols = cols._replace(teacher=batch.teacher.candidates, own_teacher=beyond(taught))
    if batch.oracle is not None:
        rows = rows._replace(known=batch.oracle.queries)
        cols = cols._replace(known=batch.oracle.candidates)
    if batch.placebo is not None and ask is not None and answer is not None:
        shuffled = _shuffled(batch.placebo, ask, answer, wide, exact=stream.plan.exact_reverse)
        rows, cols = (x._replace(shuffled=y) for x, y in zip((rows, cols), shuffled, strict=True))
    return (
        Rules(temperature, batch.criteria),
        _cut(rows, stream.shards, stream.tile[0], PADDED_ROW),
        _cut(cols, stream.shards, stream.tile[1], PADDED_COLUMN),
    )


def _pair_scores(queries: jax.Array, candidates: jax.Array, wide: jnp.dtype) -> jax.Array:
    """Score of each query and its own candidate, [q]."""
    return jnp.sum(queries.astype(wide) * candidates[: len(queries)].astype(wide), axis=1)


def _first(factors: TermFactors, count: int) -> TermFactors:
    return TermFactors(*(x[:count] for x in factors))


def _shuffled(
    order: Pairwise, ask: TermFactors, answer: TermFactors, wide: jnp.dtype, *, exact: bool
) -> tuple[Shuffled, Shuffled]:
    """What stands in for the texts of both sides, see `tile.Shuffled`."""
    count, columns = ask.places.shape[0], answer.places.shape[0]
    other_ask, other_answer = (
        TermFactors(*(x[places] for x in factors))
        for factors, places in ((ask, order.queries), (answer, order.candidates))
    )
    pairs = _first(answer, count)
    asked = own_scores(ask, _first(other_answer, count)).astype(wide)
    answered = own_scores(pairs, other_ask) if exact else own_scores(other_ask, pairs)
    answered = jnp.pad(answered.astype(wide), (0, columns - count))
    return (
        Shuffled(other_ask, order.queries, asked),
        Shuffled(other_answer, order.candidates, answered),
    )


def _cut(side: Side, shards: int, length: int, missing: int) -> Side:
    """Every leaf as [tiles, length, ...], with padding at the end."""
    more = padding(side.number.shape[0], shards, length)

    def cut(x: jax.Array, value: int = 0) -> jax.Array:
        if more:
            x = jnp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1)), constant_values=value)
        return x.reshape(-1, length, *x.shape[1:])

    return jax.tree.map(cut, side)._replace(number=cut(side.number, missing))
