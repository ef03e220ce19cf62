"""Linear maps, norms and attention shared by the vision tower and the decoder.

Parameters are plain `nnx.Param` without mesh names; `parallel/sharding.py` shards them by path.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of a forbidden pair; finite, so that a fully masked row gives numbers and not NaN."""


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [in, out]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        gain: float = 1.0,
    ):
        # Scaled by fan-in: at demo widths a fixed 0.02 would leave the residual branches silent.
        kernel = jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(gain * inputs**-0.5 * kernel)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[... inputs] to [... outputs]."""
        out = jnp.dot(x, self.kernel[...])
        if self.bias is None:
            return out
        return out + self.bias[...].reshape((1,) * (out.ndim - 1) + (-1,))


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[... d], in float32 inside."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return (wide * self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[... d], in float32 inside."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (wide * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(
            x.dtype
        )


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis in float32; `mask` is True where a score counts."""
    scores = jnp.where(mask, scores.astype(jnp.float32), MASKED)
    return jax.nn.softmax(scores, axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention without repeating keys.

    Args:
        q: [b t h k], h a multiple of the key heads.
        k: [b s n k].
        v: [b s n k].
        mask: bool [b t s], True where t may look at s.

    Returns:
        [b t h*k]
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("btnrk,bsnk->bnrts", q, k) * (size**-0.5)
    weights = masked_softmax(scores, mask[:, None, None]).astype(v.dtype)
    return jnp.einsum("bnrts,bsnk->btnrk", weights, v).reshape(batch, length, heads * size)
