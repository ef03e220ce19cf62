"""The k best of a gallery for each query: exact, in blocks, on one device or a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from afmrl_jax.parallel.layout import AXES
from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Float, Int

CHUNK = 16_384
"""Rows whose scores are in memory at a time, in a loop over the gallery."""
SCORES = 1 << 30
"""Bytes of scores that are in memory at a time on a GPU, where the gallery is not looped over: a
loop there copies each of its parts before it multiplies it."""
PARTS = 32
"""Most parts of a gallery without a loop, which would make a program of any length."""
BIN = 32
"""Rows that the first stage keeps or drops together."""
SLACK = 8
"""Bins kept beyond k, in case a score rounds differently in the second stage."""

RESCORED = 64
"""Queries whose kept rows are scored again at a time; on a CPU 8, whose rows fit its caches."""

Best = tuple[jax.Array, jax.Array]
"""Scores float32 [q k] and places int32 [q k], best first."""


def padded_rows(rows: int, devices: int = 1) -> int:
    """Rows to which a gallery is padded, so that devices, chunks and bins divide it."""
    local = -(-rows // devices)
    chunks = -(-local // CHUNK)
    chunk = -(-local // chunks)
    return devices * chunks * (-(-chunk // BIN) * BIN)


def _scores(gallery: jax.Array, queries: jax.Array) -> jax.Array:
    """Products [m q] in float32, whatever the type of the vectors."""
    exact = None if gallery.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        gallery,
        queries.astype(gallery.dtype),
        (((1,), (1,)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def top_k_dense(
    queries: Float[jax.Array, "q d"], gallery: Float[jax.Array, "m d"], alive: jax.Array, k: int
) -> Best:
    """All scores, then `jax.lax.top_k`, which prefers the earlier of equals: same as `top_k`."""
    scores = jnp.where(alive[:, None], _scores(gallery, queries), -jnp.inf)
    return jax.lax.top_k(scores.T, k)


def top_k(
    queries: Float[jax.Array, "q d"], gallery: Float[jax.Array, "m d"], alive: jax.Array, k: int
) -> Best:
    """The k best of a gallery, without all scores in memory and without sorting them.

    First it finds the best score of every bin of 32 neighbors, and the bins with the k best such
    scores (and a few more). They hold the k best rows, even with equal scores: each dropped bin
    ranks after k others, each with a row that is better than all of its rows, or as good and
    earlier. Then the rows of the kept bins are scored again.

    Args:
        queries: [q d]; cast to the type of the gallery.
        gallery: [m d]; m as `padded_rows` gives it.
        alive: bool [m]; rows that are False are never found.
        k: at most m.

    Returns:
        Scores [q k], minus infinity where fewer rows are alive, and places in the gallery.
    """
    rows = gallery.shape[0]
    bins = min(k + SLACK, rows // BIN)
    if rows <= 4 * bins * BIN:
        return top_k_dense(queries, gallery, alive, k)
    queries = queries.astype(gallery.dtype)
    best = _best_of_bins(queries, gallery, alive)
    # In the order of the gallery, so that equals keep it.
    chosen = jnp.sort(top_k_of(best.T, bins)[1], axis=1)

    def among(query: jax.Array, chosen: jax.Array) -> Best:
        places = (chosen[:, None] * BIN + jnp.arange(BIN, dtype=jnp.int32)[None]).reshape(-1)
        scores = _scores(jnp.take(gallery, places, axis=0), query[None])[:, 0]
        found, at = jax.lax.top_k(jnp.where(jnp.take(alive, places), scores, -jnp.inf), k)
        return found, jnp.take(places, at)

    at_once = 8 if built_for() == "cpu" else RESCORED
    return jax.lax.map(lambda x: among(*x), (queries, chosen), batch_size=at_once)


def _best_of_bins(queries: jax.Array, gallery: jax.Array, alive: jax.Array) -> jax.Array:
    """The best score of every bin for each query, float32 [m/BIN q]."""
    rows, count = gallery.shape[0], queries.shape[0]

    def best(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores = jnp.where(part[1][:, None], _scores(part[0], queries), -jnp.inf)
        return scores.reshape(-1, BIN, count).max(1)

    parts = -(-rows * count * 4 // SCORES)
    if built_for() == "gpu" and parts <= PARTS:
        # Slices at fixed places, which are the gallery itself.
        size = -(-rows // (parts * BIN)) * BIN
        begins = range(0, rows, size)
        return jnp.concatenate([best((gallery[n : n + size], alive[n : n + size])) for n in begins])
    chunks = -(-rows // CHUNK)
    whole = (gallery.reshape(chunks, -1, gallery.shape[1]), alive.reshape(chunks, -1))
    return jax.lax.map(best, whole).reshape(-1, count)


def top_k_of(scores: Float[jax.Array, "q n"], k: int) -> Best:
    """`jax.lax.top_k`, which sorts on a GPU, without sorting all of a long row.

    The best of every 32 neighbors are sorted first, and then the k groups with the best of these,
    for the reason given in `top_k`.
    """
    count = scores.shape[1]
    if count <= 4 * k * BIN:
        return jax.lax.top_k(scores, k)
    scores = jnp.pad(scores, ((0, 0), (0, -count % BIN)), constant_values=-jnp.inf)
    groups = scores.reshape(len(scores), -1, BIN)
    chosen = jnp.sort(top_k_of(groups.max(2), k)[1], axis=1)
    kept = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(len(scores), -1)
    found, at = jax.lax.top_k(kept, k)
    return found, jnp.take_along_axis(chosen, at // BIN, axis=1) * BIN + at % BIN


def merge(parts: Sequence[Best], k: int) -> Best:
    """The k best of all; those of a part come before their equals of later ones.

    Where there are fewer than k, scores of minus infinity follow.
    """
    scores, places = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    missing = ((0, 0), (0, max(0, k - scores.shape[1])))
    scores = jnp.pad(scores, missing, constant_values=-jnp.inf)
    scores, at = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(jnp.pad(places, missing), at, axis=1)


@partial(jax.jit, static_argnames=("k", "mesh"))
def search_part(
    queries: Float[jax.Array, "q d"],
    gallery: Float[jax.Array, "m d"],
    alive: jax.Array,
    best: Best | None,
    k: int,
    mesh: Mesh | None,
    offset: Int[AnyArray, ""],
) -> Best:
    """The k best among the best so far and the next part of a gallery.

    Args:
        queries: [q d], on every device.
        gallery: [m d]; with a mesh its rows are split over all devices; each finds its own k best,
            and these are exchanged.
        alive: bool [m], split likewise.
        best: the best so far; None for the first part.
        k: static.
        mesh: static; None for one device.
        offset: place of the part's first row.
    """
    if mesh is None:
        scores, places = top_k(queries, gallery, alive, min(k, gallery.shape[0]))
        found = scores, places + offset
        # They are in order already.
        if best is None and scores.shape[1] == k:
            return found
        return merge([found] if best is None else [best, found], k)
    local = gallery.shape[0] // mesh.size

    def own(queries: jax.Array, gallery: jax.Array, alive: jax.Array) -> Best:
        scores, places = top_k(queries, gallery, alive, min(k, local))
        number = jax.lax.axis_index(AXES).astype(jnp.int32)
        return scores[None], (places + number * local)[None]

    rows = P(AXES)
    each = jax.shard_map(
        own, mesh=mesh, in_specs=(P(), rows, rows), out_specs=(rows, rows), check_vma=False
    )(queries, gallery, alive)
    scores, places = (jnp.moveaxis(x, 0, 1).reshape(queries.shape[0], -1) for x in each)
    found = scores, places + offset
    return merge([found] if best is None else [best, found], k)
