"""The causal decoder of both families, over whole rows or behind a shared prompt."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.model_config import TextConfig
from afmrl_jax.models.layers import Linear, RMSNorm, attend, masked_softmax
from afmrl_jax.models.rope import mrope_angles, rotate
from afmrl_jax.models.vision import GatedMlp


class KeyValue(NamedTuple):
    """Keys and values of one layer, [b s n k] each (a group axis may follow b)."""

    key: jax.Array
    value: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention with biases on q, k and v."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        size, head = config.hidden_dim, config.head_dim
        self.q_proj = Linear(size, config.num_heads * head, bias=True, rngs=rngs)
        self.k_proj = Linear(size, config.num_kv_heads * head, bias=True, rngs=rngs)
        self.v_proj = Linear(size, config.num_kv_heads * head, bias=True, rngs=rngs)
        gain = config.init_residual
        self.o_proj = Linear(config.num_heads * head, size, bias=False, rngs=rngs, gain=gain)
        self.config = config

    def project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, KeyValue]:
        """Rotated queries [b t h k], and rotated keys with values [b t n k]."""
        batch, length, _ = x.shape
        head = self.config.head_dim
        q = rotate(self.q_proj(x).reshape(batch, length, -1, head), angles)
        k = rotate(self.k_proj(x).reshape(batch, length, -1, head), angles)
        return q, KeyValue(k, self.v_proj(x).reshape(batch, length, -1, head))

    def __call__(
        self, x: jax.Array, angles: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, KeyValue]:
        """Attention within rows; `mask` is bool [b t s]."""
        q, own = self.project(x, angles)
        return self.o_proj(attend(q, own.key, own.value, mask)), own

    def behind_prefix(
        self,
        q: jax.Array,
        prefix: KeyValue,
        own: KeyValue,
        prefix_mask: jax.Array,
        own_mask: jax.Array,
    ) -> jax.Array:
        """Attention of several continuations to one shared prompt and to themselves.

        Args:
            q: [b g t h k].
            prefix: keys and values of the prompt, [b s n k], stored once per prompt.
            own: keys and values of the continuations, [b g u n k].
            prefix_mask: bool [b s].
            own_mask: bool [b g t u].

        Returns:
            [b g t d]
        """
        batch, group, length, heads, size = q.shape
        kv_heads = prefix.key.shape[2]
        q = q.reshape(batch, group, length, kv_heads, heads // kv_heads, size) * (size**-0.5)
        before = jnp.einsum("bgtnrk,bsnk->bgnrts", q, prefix.key)
        within = jnp.einsum("bgtnrk,bgunk->bgnrtu", q, own.key)
        split = before.shape[-1]
        mask = jnp.concatenate(
            [
                jnp.broadcast_to(prefix_mask[:, None, None], (*own_mask.shape[:3], split)),
                own_mask,
            ],
            axis=-1,
        )
        scores = jnp.concatenate([before, within], axis=-1)
        weights = masked_softmax(scores, mask[:, :, None, None]).astype(q.dtype)
        out = jnp.einsum("bgnrts,bsnk->bgtnrk", weights[..., :split], prefix.value)
        out = out + jnp.einsum("bgnrtu,bgunk->bgtnrk", weights[..., split:], own.value)
        return self.o_proj(out.reshape(batch, group, length, heads * size))


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        sizes = (config.hidden_dim, config.intermediate_dim)
        self.mlp = GatedMlp(*sizes, bias=False, rngs=rngs, gain=config.init_residual)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The second half of the block."""
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Token table, layers and final norm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_dim)
        table = config.init_embedding * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embed_tokens = nnx.Param(table)
        self.layers = nnx.List([DecoderLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.config = config

    def _angles(self, positions: jax.Array) -> jax.Array:
        config = self.config
        return mrope_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)

    def __call__(
        self, x: jax.Array, positions: jax.Array, token_mask: jax.Array
    ) -> tuple[jax.Array, list[KeyValue]]:
        """Hidden states [b t d] behind the final norm, and each layer's keys and values.

        Args:
            x: embeddings [b t d].
            positions: int32 [b 3 t].
            token_mask: bool [b t], False at padding on either side.
        """
        length = x.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        mask = causal & token_mask[:, None, :]
        angles = self._angles(positions)
        stored = []
        for layer in self.layers:
            mixed, own = layer.self_attn(layer.input_layernorm(x), angles, mask)
            x = layer.feed_forward(x + mixed)
            stored.append(own)
        return self.norm(x), stored

    def continue_from(
        self,
        x: jax.Array,
        start: jax.Array,
        prefix: list[KeyValue],
        prefix_mask: jax.Array,
        own_mask: jax.Array,
        cache: list[KeyValue] | None = None,
        place: jax.Array | int = 0,
    ) -> tuple[jax.Array, list[KeyValue]]:
        """Text that continues prompts, several continuations a prompt.

        Args:
            x: embeddings [b g t d].
            start: int32 [b], position of the first continuation token of each prompt.
            prefix: the prompts' keys and values.
            prefix_mask: bool [b s].
            own_mask: bool [b g t u], which continuation tokens each may look at.
            cache: keys and values of u continuation places, [b g u n k]; the t new ones are
                written at `place`. None: the t tokens are all there is (u = t).
            place: index of the first of the t tokens in the continuation.

        Returns:
            Hidden states [b g t d], and the cache with the new entries.
        """
        batch, group, length, width = x.shape
        steps = start[:, None] + place + jnp.arange(length, dtype=jnp.int32)[None]
        positions = jnp.repeat(steps, group, axis=0)[:, None]
        angles = self._angles(jnp.broadcast_to(positions, (batch * group, 3, length)))
        stored = []
        for number, layer in enumerate(self.layers):
            flat = layer.input_layernorm(x).reshape(batch * group, length, width)
            q, new = layer.self_attn.project(flat, angles)
            q = q.reshape(batch, group, *q.shape[1:])
            own = KeyValue(*(part.reshape(batch, group, *part.shape[1:]) for part in new))
            if cache is not None:
                own = KeyValue(
                    *(
                        jax.lax.dynamic_update_slice_in_dim(old, fresh, place, axis=2)
                        for old, fresh in zip(cache[number], own, strict=True)
                    )
                )
            mixed = layer.self_attn.behind_prefix(q, prefix[number], own, prefix_mask, own_mask)
            x = layer.feed_forward(x + mixed)
            stored.append(own)
        return self.norm(x), stored
