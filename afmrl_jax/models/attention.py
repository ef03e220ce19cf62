"""Grouped-query attention: a dense form for every backend, and cuDNN's fused one."""

from __future__ import annotations

import functools
import warnings
from typing import Literal

import jax
import jax.numpy as jnp

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of a forbidden pair; finite, so that a fully masked row gives numbers and not NaN."""

Implementation = Literal["auto", "dense", "fused"]


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis in float32; `mask` is True where a score counts."""
    scores = jnp.where(mask, scores.astype(jnp.float32), MASKED)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    implementation: Implementation = "dense",
) -> jax.Array:
    """Grouped-query attention without repeating keys.

    Args:
        q: [b t h k], h a multiple of the key heads.
        k: [b s n k].
        v: [b s n k].
        mask: bool [b t s], True where t may look at s.
        implementation: see `Execution.attention`.

    Returns:
        [b t h*k]
    """
    batch, length, heads, size = q.shape
    if implementation == "fused" or (implementation == "auto" and fused_works(q.dtype, size)):
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
        return out.reshape(batch, length, heads * size)
    return _dense(q, k, v, mask)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("btnrk,bsnk->bnrts", q, k, preferred_element_type=jnp.float32)
    weights = masked_softmax(scores * (size**-0.5), mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("bnrts,bsnk->btnrk", weights, v).reshape(batch, length, heads * size)


@functools.cache
def fused_works(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this machine's backend compiles cuDNN attention and its gradient for such heads.

    Tried once, because what cuDNN supports differs by GPU and version.
    """
    if jax.default_backend() != "gpu" or dtype not in (jnp.bfloat16, jnp.float16):
        return False

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    q, k = (jax.ShapeDtypeStruct((2, 128, heads, head_dim), dtype) for heads in (4, 2))
    mask = jax.ShapeDtypeStruct((2, 1, 128, 128), jnp.bool_)
    try:
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, mask).compile()
    except Exception as error:  # cuDNN and XLA raise many kinds; any means: not here.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        warnings.warn(f"fused attention is not available here ({reason})", stacklevel=2)
        return False
    return True
