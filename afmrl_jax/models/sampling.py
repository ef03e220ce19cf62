"""Choosing tokens: random numbers of their own for every sample, and cuts of the distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.types import AnyArray, Array, Float, Int

BLOCK = 128
"""Tokens whose probabilities are summed before one of them is chosen."""


def sample_keys(key: jax.Array, row_ids: Int[AnyArray, " b"], group: int) -> jax.Array:
    """A key [b g] for every sample of every row."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(fold(key, row_ids), jnp.arange(group, dtype=jnp.int32))


def cut(logits: Float[Array, "*n v"], top_p: float, top_k: int) -> Float[Array, "*n v"]:
    """Forbid tokens outside the k likeliest, and outside the smallest set of mass top_p."""
    if top_k:
        floor = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < floor, MASKED, logits)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        # A token stays while the mass before it is below top_p; the likeliest always stays.
        kept = jnp.concatenate([jnp.ones_like(mass[..., :1], bool), mass[..., :-1] < top_p], -1)
        floor = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < floor, MASKED, logits)
    return logits


def likeliest(logits: Float[Array, "*n v"]) -> Int[Array, "*n"]:
    """The first of the highest logits: `jnp.argmax`, which on a CPU looks at one at a time."""
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == highest, places, logits.shape[-1] - 1), axis=-1)


def draw(logits: Float[Array, "b g v"], keys: jax.Array, step: Int[Array, ""]) -> Int[Array, "b g"]:
    """A token of each sample by the softmax of its logits.

    A block of tokens by the blocks' sums, then a token of the block: two random numbers a sample,
    where noise on every logit (Gumbel) takes as many as the vocabulary has tokens.

    Args:
        logits: [b g v]; a token at `MASKED` is never drawn.
        keys: [b g], of the samples.
        step: number of the token, folded into the keys.
    """
    own = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step), (2,))))
    chance = own(keys)
    missing = -logits.shape[-1] % BLOCK
    if missing:
        logits = jnp.pad(logits, ((0, 0), (0, 0), (0, missing)), constant_values=MASKED)
    blocks = logits.reshape(*logits.shape[:2], -1, BLOCK)
    peak = jnp.max(logits, axis=-1)[..., None]
    block = _by_mass(jnp.sum(jnp.exp(blocks - peak[..., None]), axis=-1), chance[..., 0])
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=2)[:, :, 0]
    return block * BLOCK + _by_mass(jnp.exp(inside - peak), chance[..., 1])


def _by_mass(mass: Float[Array, "b g k"], chance: Float[Array, "b g"]) -> Int[Array, "b g"]:
    """The first of k whose mass and that before it exceed `chance` of all; none without mass."""
    before = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0.0)
    # Of the sums and not of the last of them: rounding may leave one before it higher.
    bar = chance[..., None] * jnp.max(before, axis=-1, keepdims=True)
    return jnp.argmax(before > bar, axis=-1).astype(jnp.int32)
