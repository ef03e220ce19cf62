"""Grouped-query attention: a dense form for every backend, and cuDNN's fused one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from afmrl_jax.models.qwen_vl.fused_attention import fused_attention
from afmrl_jax.models.qwen_vl.fused_probe import fused_forms
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of a forbidden pair; finite, so that a fully masked row gives numbers and not NaN."""

Implementation = Literal["auto", "dense", "fused"]


@dataclass(frozen=True)
class AttentionLayout:
    """Which tokens of a row look at which: what every implementation builds its own form from.

    A token looks at those that exist, belong to its segment and, if `causal`, do not follow it.
    What padding itself looks at is left open: its outputs are finite, and nobody reads them.
    """

    causal: bool = False
    lengths: Int[AnyArray, " b"] | None = None
    """Tokens of each row, which stand at its front; None if all exist or `segments` tells."""
    segments: Int[AnyArray, "b t"] | None = None
    """Number of the segment that a token belongs to, from 1; 0 is padding, anywhere in the row.
    None if a row is a single segment."""

    def mask(self, length: int) -> Bool[Array, "#b t t"]:
        """True where the token of a row of `length` may look at the other one."""
        places = jnp.arange(length, dtype=jnp.int32)
        seen = jnp.ones((1, length, length), bool)
        if self.causal:
            seen = (places[:, None] >= places[None])[None]
        if self.lengths is not None:
            seen = seen & (places[None] < self.lengths[:, None])[:, None]
        if self.segments is not None:
            own = jnp.asarray(self.segments)
            seen = seen & (own[:, :, None] == own[:, None]) & (own > 0)[:, None]
        return seen


def uses_fused(implementation: Implementation, dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether `attend` takes cuDNN's form for such heads."""
    if implementation != "auto":
        return implementation == "fused"
    return fused_forms(dtype, head_dim).rows


def attend(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b n t k"],
    v: Float[Array, "b n t k"],
    layout: AttentionLayout,
    implementation: Implementation = "dense",
) -> Float[Array, "b t h*k"]:
    """Grouped-query attention within rows, without repeating keys.

    Args:
        q: queries; h is a multiple of n.
        k: keys.
        v: values.
        layout: who looks at whom.
        implementation: see `Execution.attention`.
    """
    if not uses_fused(implementation, q.dtype, q.shape[-1]):
        return dense(q, k, v, layout.mask(q.shape[1]))
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    masks = implementation == "fused" or not fused_forms(q.dtype, q.shape[-1]).masks
    out = fused_attention(
        q,
        k,
        v,
        causal=layout.causal,
        lengths=layout.lengths,
        segments=layout.segments,
        masked=None if masks else _dense_rows,
    )
    return out.reshape(*out.shape[:2], -1)


def _dense_rows(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array) -> jax.Array:
    """`dense` in the place of a fused kernel: heads behind tokens, and the mask for all of them."""
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    return dense(q, k, v, mask[:, 0]).reshape(q.shape)


def dense(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b n s k"],
    v: Float[Array, "b n s k"],
    mask: Bool[AnyArray, "#b t s"],
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
