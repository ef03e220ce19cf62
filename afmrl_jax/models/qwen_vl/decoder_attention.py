"""Attention of the decoder: over whole rows, or after a shared prompt."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx

from afmrl_jax.config import Execution, TextConfig
from afmrl_jax.models.qwen_vl.adapters import Adapters
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend
from afmrl_jax.models.qwen_vl.layers import Keys, Linear, RMSNorm
from afmrl_jax.models.qwen_vl.rope import Turn, rotate
from afmrl_jax.models.qwen_vl.shared_prompt import attend_behind
from afmrl_jax.types import AnyArray, Array, Bool, Float


class KeyValue(NamedTuple):
    """Keys and values of prompts, [b n s k] each, or of groups of continuations, [b n g u k].

    Heads in front, as products want them; those of all layers have the layers along a further
    first axis.
    """

    key: Float[Array, "*of s k"]
    value: Float[Array, "*of s k"]


class Attention(nnx.Module):
    """Grouped-query attention, with or without biases and norms on q and k."""

    def __init__(self, config: TextConfig, adapters: Adapters, execution: Execution, *, keys: Keys):
        size, inner = config.hidden_dim, config.num_heads * config.head_dim
        narrow = config.num_kv_heads * config.head_dim

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> Linear:
            return Linear(inputs, outputs, bias=bias, adapter=adapters(name), keys=keys)

        self.q_proj = linear("q_proj", size, inner, config.qkv_bias)
        self.k_proj = linear("k_proj", size, narrow, config.qkv_bias)
        self.v_proj = linear("v_proj", size, narrow, config.qkv_bias)
        self.o_proj = linear("o_proj", inner, size, False)
        head, eps = config.head_dim, config.rms_norm_eps
        self.q_norm = RMSNorm(head, eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head, eps) if config.qk_norm else None
        self.config = config
        self.implementation = execution.attention

    def project(
        self, x: Float[Array, "b t d"], turn: Turn
    ) -> tuple[Float[Array, "b t h k"], KeyValue]:
        """Rotated queries, and rotated keys with values [b n t k]."""
        batch, length, _ = x.shape
        head = self.config.head_dim
        q = self.q_proj(x).reshape(batch, length, -1, head)
        k = self.k_proj(x).reshape(batch, length, -1, head)
        q, k = (rotate(y, turn) for y in normed(q, k, self.q_norm, self.k_norm))
        v = self.v_proj(x).reshape(batch, length, -1, head)
        return q, KeyValue(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        turn: Turn,
        layout: AttentionLayout,
    ) -> tuple[Float[Array, "b t d"], KeyValue]:
        """Attention within rows; `layout` says which token looks at which."""
        mixed, own = self.mixed(x, turn, layout)
        return self.o_proj(mixed), own

    def mixed(
        self,
        x: Float[Array, "b t d"],
        turn: Turn,
        layout: AttentionLayout,
    ) -> tuple[Float[Array, "b t i"], KeyValue]:
        """As a call, before the last map."""
        q, own = self.project(x, turn)
        return attend(q, own.key, own.value, layout, self.implementation), own

    def behind_prefix(
        self,
        q: Float[Array, "b g t h k"],
        prefix: KeyValue,
        own: KeyValue,
        prefix_mask: Bool[AnyArray, "b s"],
        own_mask: Bool[AnyArray, "b g t u"],
    ) -> Float[Array, "b g t d"]:
        """Attention of several continuations to one shared prompt and to themselves.

        Args:
            q: rotated queries.
            prefix: keys and values of the prompt, [b n s k], stored once per prompt.
            own: keys and values of the continuations, [b n g u k].
            prefix_mask: False at padding.
            own_mask: which continuation tokens each may look at.
        """
        parts = (*prefix, *own)
        return self.o_proj(attend_behind(q, *parts, prefix_mask, own_mask))


def normed(
    q: jax.Array, k: jax.Array, q_norm: RMSNorm | None, k_norm: RMSNorm | None
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys [... k], each head by itself, where there are norms for them."""
    return (q if q_norm is None else q_norm(q)), (k if k_norm is None else k_norm(k))
