"""Attention of several continuations to the prompt they share and to themselves.

cuDNN could compute both parts and hand out the logarithms of their sums to join them by. But its
gradient in JAX ignores what flows into those logarithms, so the joined result would have a wrong
one, and this stays plain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.types import AnyArray, Array, Bool, Float

SCORES_AT_ONCE = 1 << 28
"""Bytes of float32 scores from which on one continuation of every prompt is computed after the
other, or on one device some rows that several share, and nothing of it is kept for the backward
pass."""


def attend_behind(
    q: Float[Array, "b g t h k"],
    prompt_key: Float[Array, "b n s k"],
    prompt_value: Float[Array, "b n s k"],
    key: Float[Array, "b n g u k"],
    value: Float[Array, "b n g u k"],
    prompt_mask: Bool[AnyArray, "b s"],
    mask: Bool[AnyArray, "b g t u"],
) -> Float[Array, "b g t h*k"]:
    """One softmax over the prompt, stored once, and a continuation's own tokens.

    Args:
        q: rotated queries; h is a multiple of n.
        prompt_key: keys of the prompts.
        prompt_value: their values.
        key: keys of the continuations.
        value: their values.
        prompt_mask: False at padding.
        mask: which of its own tokens each token may look at.
    """
    batch, group, length, heads, _ = q.shape
    seen = prompt_key.shape[2] + key.shape[3]
    prompt = prompt_key, prompt_value, jnp.asarray(prompt_mask)
    of_row = 4 * group * heads * length * seen
    if batch * of_row < SCORES_AT_ONCE or (group == 1 and _divides_batches()):
        return _both_parts(q, *prompt, key, value, jnp.asarray(mask))
    if group == 1:

        @jax.checkpoint
        def row(part: tuple[jax.Array, ...]) -> jax.Array:
            return _both_parts(*(x[None] for x in part))[0]

        rows = q, *prompt, key, value, jnp.asarray(mask)
        return jax.lax.map(row, rows, batch_size=max(1, SCORES_AT_ONCE // of_row))

    @jax.checkpoint
    def one(part: tuple[jax.Array, ...]) -> jax.Array:
        q, key, value, mask = part
        key, value = key[:, :, None], value[:, :, None]
        return _both_parts(q[:, None], *prompt, key, value, mask[:, None])[:, 0]

    parts = (q.swapaxes(0, 1), *(jnp.moveaxis(x, 2, 0) for x in (key, value)))
    return jax.lax.map(one, (*parts, jnp.asarray(mask).swapaxes(0, 1))).swapaxes(0, 1)


def _divides_batches() -> bool:
    """Whether rows lie on several devices, which would have to exchange them to go through them."""
    return jax.sharding.get_abstract_mesh().size > 1


def _both_parts(
    q: Float[Array, "b g t h k"],
    prompt_key: Float[Array, "b n s k"],
    prompt_value: Float[Array, "b n s k"],
    prompt_mask: Bool[Array, "b s"],
    key: Float[Array, "b n g u k"],
    value: Float[Array, "b n g u k"],
    mask: Bool[Array, "b g t u"],
) -> Float[Array, "b g t h*k"]:
    batch, group, length, heads, size = q.shape
    kv_heads, wide = prompt_key.shape[1], jnp.float32
    # [b n g r t k], r query heads to a key head.
    q = q.reshape(batch, group, length, kv_heads, heads // kv_heads, size) * (size**-0.5)
    q = q.transpose(0, 3, 1, 4, 2, 5)
    before = jnp.einsum("bngrtk,bnsk->bngrts", q, prompt_key, preferred_element_type=wide)
    within = jnp.einsum("bngrtk,bnguk->bngrtu", q, key, preferred_element_type=wide)
    before = jnp.where(prompt_mask[:, None, None, None, None], before, MASKED)
    within = jnp.where(mask[:, None, :, None], within, MASKED)
    # One softmax over both parts, without joining them.
    highest = jnp.maximum(
        jnp.max(before, axis=-1, keepdims=True), jnp.max(within, axis=-1, keepdims=True)
    )
    before, within = (jnp.exp(x - jax.lax.stop_gradient(highest)) for x in (before, within))
    total = jnp.sum(before, axis=-1, keepdims=True) + jnp.sum(within, axis=-1, keepdims=True)
    before, within = before.astype(q.dtype), within.astype(q.dtype)
    out = jnp.einsum("bngrts,bnsk->bngrtk", before, prompt_value, preferred_element_type=wide)
    out = out + jnp.einsum("bngrtu,bnguk->bngrtk", within, value, preferred_element_type=wide)
    out = (out / total).astype(q.dtype).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, group, length, heads * size)
