"""Where the positives of a query stand in a gallery: counted after the product, never sorted."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from afmrl_jax.parallel.layout import AXES
from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Float, Int

LOWEST_COSINE = -1.0
BLOCK = 64
"""Queries whose scores exist at a time on a CPU: BLOCK x m numbers, which the counting reads while
they are still near."""
DEVICE_BLOCK = 512
"""The most elsewhere, where each block reads the gallery from memory once."""
DEVICE_SCORES = 2**28
"""Numbers that the scores of such a block may have, unless those of `BLOCK` have more."""


class PositiveRanks(NamedTuple):
    """How n queries stand against a gallery of m listings."""

    rank: Int[AnyArray, "*n"]
    """Rank of the best positive among the negatives, 1 is first, m + 1 without one."""
    ranks: Int[AnyArray, "*n p"] | None
    """Place of each positive in the whole list, m + 1 at padding; None unasked."""
    margin: Float[AnyArray, "*n"] | None
    """Score of the best positive less the mean of the hardest negatives, in [-2, 2];
    None unasked."""


def rank_positives(
    query: Float[Array, "n d"],
    gallery: Float[Array, "m d"],
    positives: Int[Array, "n p"],
    own: Int[Array, " n"],
    *,
    size: int | None = None,
    every: bool = False,
    negatives: int = 0,
) -> PositiveRanks:
    """Rank of the best positive of each query, by counting the negatives at or above its score.

        rank = 1 + #{ j neither positive nor own : not (s_j < max over positives of s) }

    Ties count against the query, and so does a score that is not a number. The scores of a block
    of queries are one product, which is counted and forgotten; all n x m never exist. Under
    `jax.set_mesh` each device scores its part of the gallery, and only counts and the scores of
    positives travel.

    Example:
        >>> gallery = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> rank_positives(gallery[:1], gallery, jnp.array([[0, 2]]), jnp.array([0])).rank.tolist()
        [2]

    Args:
        query: unit vectors [n d].
        gallery: unit vectors [m d]; a narrower type than float32 is what queries are cast to.
        positives: int32 [n p], places in the gallery of listings of the query's product, none
            twice; -1 is padding. The query's own place may be among them and does not count.
        own: int32 [n], place of the query's own listing, which takes no part; -1 for none.
        size: listings in the gallery, where rows of zeros follow that only fill up the devices.
        every: give `ranks` too, p times the counting.
        negatives: how many hardest negatives `margin` averages (all of them where there are
            fewer); 0 gives no margin. A missing positive, or the lack of any negative, stands for
            a cosine of -1.

    Returns:
        See `PositiveRanks`; equal to `rank_positives_dense`.
    """
    size = gallery.shape[0] if size is None else size
    rows = min(_block(gallery.shape[0]), query.shape[0])
    blocks = -(-query.shape[0] // rows)
    fill = blocks * rows - query.shape[0]

    def split(x: jax.Array, value: float) -> jax.Array:
        widths = [(0, fill)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, widths, constant_values=value).reshape(blocks, rows, *x.shape[1:])

    parts = (split(query, 0), split(positives, -1), split(own, -1))
    run = partial(_all_blocks, size=size, every=every, negatives=min(negatives, size))
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in AXES if not mesh.empty and mesh.shape.get(name, 1) > 1)
    if axes and gallery.shape[0] % math.prod(mesh.shape[name] for name in axes) == 0:
        whole = PartitionSpec()
        found = jax.shard_map(
            partial(run, axes=axes),
            in_specs=(PartitionSpec(axes), whole),
            out_specs=whole,
            check_vma=False,
        )(gallery, parts)
    else:
        found = run(gallery, parts, axes=())
    return jax.tree.map(lambda x: x.reshape(blocks * rows, *x.shape[2:])[: query.shape[0]], found)


def _block(gallery: int) -> int:
    """Queries whose scores exist at a time."""
    if built_for() == "cpu":
        return BLOCK
    return min(max(DEVICE_SCORES // max(gallery, 1), BLOCK), DEVICE_BLOCK)


def _all_blocks(
    gallery: jax.Array,
    parts: tuple[jax.Array, jax.Array, jax.Array],
    *,
    size: int,
    every: bool,
    negatives: int,
    axes: tuple[str, ...],
) -> PositiveRanks:
    """The blocks one after the other; `gallery` is the device's part of it."""
    local = gallery.shape[0]
    offset = jax.lax.axis_index(axes) * local if axes else 0
    # How many of the rows here are nothing but filling.
    filling = jnp.clip(offset + local - size, 0, local)

    def together(reduce: str, x: jax.Array) -> jax.Array:
        return getattr(jax.lax, reduce)(x, axes) if axes else x

    def block(part: tuple[jax.Array, jax.Array, jax.Array]) -> PositiveRanks:
        query, positives, own = part
        scores = _scores(query, gallery)
        real = (positives >= 0) & (positives != own[:, None])
        kept, kept_here = _at(scores, jnp.where(real, positives, -1), offset)
        gone, gone_here = _at(scores, own[:, None], offset)

        def above(threshold: jax.Array) -> jax.Array:
            """Negatives [r] not below [r]: everything less what is no negative."""
            limit = threshold[:, None]
            count = jnp.sum(~(scores < limit), axis=1, dtype=jnp.int32)
            count -= jnp.sum(~(kept < limit) & kept_here, axis=1, dtype=jnp.int32)
            count -= jnp.sum(~(gone < limit) & gone_here, axis=1, dtype=jnp.int32)
            count -= filling * (~(scores[:, -1] < threshold)).astype(jnp.int32)
            return together("psum", count)

        # Only one device has the score of a positive; the others bring -inf.
        own_scores = together("pmax", jnp.where(kept_here, kept, -jnp.inf))
        nothing = ~jnp.any(real, axis=1)
        best = jnp.max(own_scores, axis=1)
        rank = jnp.where(nothing, size + 1, 1 + above(best))
        ranks = margin = None
        if every:
            before = jax.vmap(above, in_axes=1, out_axes=1)(own_scores)
            ranks = jnp.where(real, 1 + before + _positives_before(own_scores), size + 1)
        if negatives:
            free = _without(scores, (positives, own[:, None]), offset)
            spare = jnp.arange(local, dtype=jnp.int32) + offset >= size
            free = jnp.where(spare[None], -jnp.inf, free)
            hardest = jax.lax.top_k(free, min(negatives, local))[0]
            if axes:
                hardest = jax.lax.all_gather(hardest, axes, axis=1, tiled=True)
                hardest = jax.lax.top_k(hardest, min(negatives, hardest.shape[1]))[0]
            margin = _margin(jnp.where(nothing, LOWEST_COSINE, best), hardest)
        return PositiveRanks(rank, ranks, margin)

    return jax.lax.map(block, parts)


def _scores(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """Cosines [n m], summed in float32: a rank must not hang on how they are computed."""
    return jnp.dot(
        query.astype(gallery.dtype),
        gallery.T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _at(scores: jax.Array, places: jax.Array, offset: jax.Array | int) -> tuple:
    """Scores [n p] at places of the whole gallery, and which of them lie in this part of it."""
    at = places - offset
    here = (places >= 0) & (at >= 0) & (at < scores.shape[1])
    return jnp.take_along_axis(scores, jnp.clip(at, 0, scores.shape[1] - 1), axis=1), here


def _without(
    scores: jax.Array, places: tuple[jax.Array, ...], offset: jax.Array | int
) -> jax.Array:
    """The scores with -inf at places of the whole gallery."""
    at = jnp.concatenate(places, axis=1)
    # Out of range is dropped; a negative number would count from the end.
    at = jnp.where((at >= offset) & (at >= 0), at - offset, scores.shape[1])
    rows = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
    return scores.at[rows, at].set(-jnp.inf, mode="drop")


def _positives_before(scores: jax.Array) -> jax.Array:
    """How many positives stand before each, [n p]; equal ones in the order given."""
    left, right = scores[:, :, None], scores[:, None, :]
    earlier = jnp.tril(jnp.ones(scores.shape[1:] * 2, bool), -1)[None]
    return jnp.sum((right > left) | ((right == left) & earlier), axis=2, dtype=jnp.int32)


def _margin(best: jax.Array, hardest: jax.Array) -> jax.Array:
    # Only what is left out is -inf; a NaN score must reach the reward and be seen there.
    there = ~jnp.isneginf(hardest)
    count = jnp.sum(there, axis=1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(there, hardest, 0.0), axis=1) / jnp.maximum(count, 1.0)
    return best - jnp.where(count > 0, mean, LOWEST_COSINE)


def rank_positives_dense(
    query: Float[Array, "n d"],
    gallery: Float[Array, "m d"],
    positives: Int[Array, "n p"],
    own: Int[Array, " n"],
    *,
    negatives: int = 3,
) -> PositiveRanks:
    """The literal twin of `rank_positives` over all scores at once; arguments as there."""
    scores, m = _scores(query, gallery), gallery.shape[0]
    places = jnp.arange(m, dtype=jnp.int32)
    exclude = places[None] == own[:, None]
    real = (positives >= 0) & (positives != own[:, None])
    relevant = jnp.any((positives[:, :, None] == places[None, None]) & real[:, :, None], axis=1)
    negative = ~relevant & ~exclude
    kept = jnp.take_along_axis(scores, jnp.clip(positives, 0), axis=1)
    kept = jnp.where(real, kept, -jnp.inf)
    nothing = ~jnp.any(real, axis=1)
    at_or_above = ~(scores[:, None] < kept[:, :, None]) & negative[:, None]
    before = jnp.sum(at_or_above, axis=2, dtype=jnp.int32)
    ranks = jnp.where(real, 1 + before + _positives_before(kept), m + 1)
    best = jnp.max(kept, axis=1)
    above = jnp.sum(~(scores < best[:, None]) & negative, axis=1, dtype=jnp.int32)
    hardest = -jnp.sort(jnp.where(negative, -scores, jnp.inf), axis=1)[:, :negatives]
    margin = _margin(jnp.where(nothing, LOWEST_COSINE, best), hardest)
    return PositiveRanks(jnp.where(nothing, m + 1, 1 + above), ranks, margin)
