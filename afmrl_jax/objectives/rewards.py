"""Retrieval rewards by counting: no sort, and no top-k where only a rank is asked."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.axes import Array, Bool, Float, Int

LOWEST_COSINE = -1.0


def _scores(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """Cosines [n m] at full float32 precision: a rank must not hang on how they are computed."""
    return jnp.dot(
        query.astype(jnp.float32),
        gallery.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )


def positive_rank(
    query: Float[Array, "n d"],
    gallery: Float[Array, "m d"],
    relevant: Bool[Array, "n m"],
    exclude: Bool[Array, "n m"],
) -> Int[Array, " n"]:
    """Rank of the best positive of each query, by counting the negatives at or above its score.

        rank = 1 + #{ j not relevant, not excluded : not (s_j < max_{relevant} s) }

    1 is first. Ties count against the query, and so does a score that is not a number. With a
    gallery sharded over a mesh each device counts its part and only the counts are summed.

    Example:
        >>> gallery = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> own, same = jnp.array([[True, False, False]]), jnp.array([[True, False, True]])
        >>> positive_rank(gallery[:1], gallery, same, own).tolist()
        [2]

    Args:
        query: unit vectors [n d].
        gallery: unit vectors [m d].
        relevant: [n m], gallery listings of the query's product.
        exclude: [n m], gallery entries that do not take part (the query's own listing).

    Returns:
        int32 [n]; m + 1 for a query without a positive.
    """
    scores = _scores(query, gallery)
    positive = relevant & ~exclude
    best = jnp.max(jnp.where(positive, scores, -jnp.inf), axis=1, keepdims=True)
    above = ~(scores < best) & ~relevant & ~exclude
    ranks = 1 + jnp.sum(above, axis=1, dtype=jnp.int32)
    return jnp.where(jnp.any(positive, axis=1), ranks, gallery.shape[0] + 1)


def recall_reward(ranks: Int[Array, "*shape"], k: int) -> Float[Array, "*shape"]:
    """Recall@k of each query as in the paper: 1 where a positive is among the first k, else 0."""
    return (ranks <= k).astype(jnp.float32)


def reciprocal_rank_reward(ranks: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / rank of the best positive, in (0, 1]."""
    return 1.0 / ranks.astype(jnp.float32)


def margin_reward(
    query: Float[Array, "n d"],
    gallery: Float[Array, "m d"],
    relevant: Bool[Array, "n m"],
    exclude: Bool[Array, "n m"],
    negatives: int = 3,
) -> Float[Array, " n"]:
    """Score of the best positive less the mean of the hardest negatives, in [-2, 2].

    Continuous where ranks stand still, so almost no group is without variance.

    Args:
        query: unit vectors [n d].
        gallery: unit vectors [m d].
        relevant: [n m], gallery listings of the query's product.
        exclude: [n m], gallery entries that do not take part (the query's own listing).
        negatives: how many hardest negatives are averaged; all of them where there are fewer.

    Returns:
        float32 [n]; a missing positive, or the lack of any negative, stands for a cosine of -1.
    """
    scores = _scores(query, gallery)
    positive = jnp.where(relevant & ~exclude, scores, LOWEST_COSINE)
    negative = jnp.where(relevant | exclude, -jnp.inf, scores)
    hardest = jax.lax.top_k(negative, min(negatives, gallery.shape[0]))[0]
    # Only what is left out is -inf; a NaN score must reach the reward and be seen there.
    there = ~jnp.isneginf(hardest)
    count = jnp.sum(there, axis=1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(there, hardest, 0.0), axis=1) / jnp.maximum(count, 1.0)
    return jnp.max(positive, axis=1) - jnp.where(count > 0, mean, LOWEST_COSINE)


def apply_malformed(
    reward: Float[Array, "*shape"], malformed: Bool[Array, "*shape"], penalty: float = -0.1
) -> Float[Array, "*shape"]:
    """Rewards with malformed outputs at `penalty`, same shape.

    A margin may lie below the penalty; `grpo.group_advantages` keeps a malformed output from
    profiting from that.
    """
    return jnp.where(malformed, penalty, reward)
