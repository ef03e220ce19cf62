"""Grouped-query attention: a dense form for every backend, and cuDNN's fused one."""

from __future__ import annotations

import functools
import warnings
from typing import Literal

import jax
import jax.numpy as jnp

from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Bool, Float

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of a forbidden pair; finite, so that a fully masked row gives numbers and not NaN."""

Implementation = Literal["auto", "dense", "fused"]


def attend(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b n s k"],
    v: Float[Array, "b n s k"],
    mask: Bool[AnyArray, "b t s"],
    implementation: Implementation = "dense",
) -> Float[Array, "b t h*k"]:
    """Grouped-query attention without repeating keys.

    Args:
        q: queries; h is a multiple of n.
        k: keys.
        v: values.
        mask: True where t may look at s.
        implementation: see `Execution.attention`.
    """
    batch, length, heads, size = q.shape
    if implementation == "fused" or (implementation == "auto" and fused_works(q.dtype, size)):
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
        return out.reshape(batch, length, heads * size)
    return _dense(q, k, v, mask)


def _dense(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b n s k"],
    v: Float[Array, "b n s k"],
    mask: Bool[AnyArray, "b t s"],
) -> Float[Array, "b t h*k"]:
    """Plain attention, arranged so that XLA's CPU and GPU products find their operands in order.

    Heads stand in front, the queries of one key head side by side, and rows are divided by their
    sum after the last product, where they are shorter: twice as fast on a CPU as softmax first.
    """
    batch, length, heads, size = q.shape
    _, kv_heads, keys, _ = k.shape
    shared = heads // kv_heads
    q = (q * size**-0.5).reshape(batch, length, kv_heads, shared, size).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, kv_heads, shared * length, size)
    scores = jnp.einsum("bnqk,bnsk->bnqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, shared, length, keys)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    weights = weights.reshape(batch, kv_heads, shared * length, keys)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "bnqs,bnsk->bnqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / total).astype(v.dtype).reshape(batch, kv_heads, shared, length, size)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * size)


def fused_works(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this machine's GPU compiles cuDNN attention and its gradient for such heads.

    False for a program that is built for a GPU elsewhere: cuDNN compiles only where a GPU is.
    """
    here = built_for() == jax.default_backend() == "gpu"
    return here and dtype in (jnp.bfloat16, jnp.float16) and _compiles(dtype, head_dim)


@functools.cache
def _compiles(dtype: jnp.dtype, head_dim: int) -> bool:
    """Tried once, because what cuDNN supports differs by GPU and version."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: AnyArray) -> jax.Array:
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
