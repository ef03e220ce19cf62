"""The causal decoder of both families, over whole rows or after a shared prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.config import Execution, InitConfig, LoraConfig, TextConfig
from afmrl_jax.models.qwen_vl.attention import MASKED, attend
from afmrl_jax.models.qwen_vl.layers import Keys, Linear, RMSNorm, run_stack, stack_layers, unstack
from afmrl_jax.models.qwen_vl.rope import Rotary, mrope_angles, rotate
from afmrl_jax.models.qwen_vl.vision import GatedMlp
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int, PyTree


class KeyValue(NamedTuple):
    """Keys and values of prompts, [b n s k] each, or of groups of continuations, [b n g u k].

    Heads in front, as products want them; those of all layers have the layers along a further
    first axis.
    """

    key: Float[Array, "*of s k"]
    value: Float[Array, "*of s k"]


Cache = KeyValue | list[KeyValue]
"""Keys and values of all layers: along a first axis, or a list where the layers are a list."""


class Attention(nnx.Module):
    """Grouped-query attention with biases on q, k and v."""

    def __init__(
        self, config: TextConfig, lora: LoraConfig | None, execution: Execution, *, keys: Keys
    ):
        size, inner = config.hidden_dim, config.num_heads * config.head_dim
        narrow = config.num_kv_heads * config.head_dim

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> Linear:
            own = lora if lora is not None and name in lora.targets else None
            return Linear(inputs, outputs, bias=bias, lora=own, keys=keys)

        self.q_proj = linear("q_proj", size, inner, True)
        self.k_proj = linear("k_proj", size, narrow, True)
        self.v_proj = linear("v_proj", size, narrow, True)
        self.o_proj = linear("o_proj", inner, size, False)
        self.config = config
        self.implementation = execution.attention

    def project(
        self, x: Float[Array, "b t d"], angles: Float[Array, "b t f"]
    ) -> tuple[Float[Array, "b t h k"], KeyValue]:
        """Rotated queries, and rotated keys with values [b n t k]."""
        batch, length, _ = x.shape
        head = self.config.head_dim
        q = rotate(self.q_proj(x).reshape(batch, length, -1, head), angles)
        k = rotate(self.k_proj(x).reshape(batch, length, -1, head), angles)
        v = self.v_proj(x).reshape(batch, length, -1, head)
        return q, KeyValue(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        angles: Float[Array, "b t f"],
        mask: Bool[AnyArray, "b t t"],
    ) -> tuple[Float[Array, "b t d"], KeyValue]:
        """Attention within rows; `mask` says which token looks at which."""
        q, own = self.project(x, angles)
        return self.o_proj(attend(q, own.key, own.value, mask, self.implementation)), own

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
        batch, group, length, heads, size = q.shape
        kv_heads, wide = prefix.key.shape[1], jnp.float32
        # [b n g r t k], r query heads to a key head.
        q = q.reshape(batch, group, length, kv_heads, heads // kv_heads, size) * (size**-0.5)
        q = q.transpose(0, 3, 1, 4, 2, 5)
        before = jnp.einsum("bngrtk,bnsk->bngrts", q, prefix.key, preferred_element_type=wide)
        within = jnp.einsum("bngrtk,bnguk->bngrtu", q, own.key, preferred_element_type=wide)
        before = jnp.where(prefix_mask[:, None, None, None, None], before, MASKED)
        within = jnp.where(own_mask[:, None, :, None], within, MASKED)
        # One softmax over both parts, without joining them.
        highest = jnp.maximum(
            jnp.max(before, axis=-1, keepdims=True), jnp.max(within, axis=-1, keepdims=True)
        )
        before, within = (jnp.exp(x - jax.lax.stop_gradient(highest)) for x in (before, within))
        total = jnp.sum(before, axis=-1, keepdims=True) + jnp.sum(within, axis=-1, keepdims=True)
        before, within = before.astype(q.dtype), within.astype(q.dtype)
        out = jnp.einsum("bngrts,bnsk->bngrtk", before, prefix.value, preferred_element_type=wide)
        out = out + jnp.einsum(
            "bngrtu,bnguk->bngrtk", within, own.value, preferred_element_type=wide
        )
        out = (out / total).astype(q.dtype).transpose(0, 2, 4, 1, 3, 5)
        return self.o_proj(out.reshape(batch, group, length, heads * size))


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(
        self, config: TextConfig, lora: LoraConfig | None, execution: Execution, *, keys: Keys
    ):
        self.input_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.self_attn = Attention(config, lora, execution, keys=keys)
        self.post_attention_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        sizes = (config.hidden_dim, config.intermediate_dim)
        self.mlp = GatedMlp(*sizes, bias=False, lora=lora, keys=keys)

    def feed_forward(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The second half of the block."""
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Token table, layers and final norm.

    Args:
        config: sizes.
        lora: adapters, or None.
        execution: types and implementation.
        rotary: angles of positions.
        keys: of the random weights.
    """

    def __init__(
        self,
        config: TextConfig,
        lora: LoraConfig | None,
        execution: Execution,
        *,
        rotary: Rotary = mrope_angles,
        keys: Keys,
    ):
        shape = (config.vocab_size, config.hidden_dim)
        table = InitConfig.embedding * jax.random.normal(keys.draw(), shape, jnp.float32)
        self.embed_tokens = nnx.Param(table)
        self.layers = stack_layers(
            config.num_layers, lambda: DecoderLayer(config, lora, execution, keys=keys), keys
        )
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.config = config
        self.execution = execution
        self.rotary = rotary

    def embed(self, tokens: Int[AnyArray, "*n"]) -> Float[Array, "*n d"]:
        """Rows of the token table, in the type of the activations."""
        return jnp.take(self.embed_tokens[...], tokens, axis=0).astype(self.execution.dtype)

    def _angles(self, positions: Int[AnyArray, "b 3 t"]) -> Float[Array, "b t f"]:
        config = self.config
        return self.rotary(positions, config.head_dim, config.rope_theta, config.mrope_section)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
        segment: Int[AnyArray, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states after the final norm.

        Args:
            x: embeddings.
            positions: time, row and column.
            token_mask: False at padding on either side.
            segment: numbers of texts that share a row and do not see each other; None for one.
        """
        found = self._through(x, positions, token_mask, lambda own, out: None, segment)
        return self.norm(found[0])

    def prefill(
        self,
        x: Float[Array, "b t d"],
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
    ) -> tuple[Float[Array, "b t d"], KeyValue]:
        """As a call; also the keys and values of all layers, [l b n t k]."""
        x, stored = self._through(x, positions, token_mask, lambda own, out: own)
        return self.norm(x), stored

    def in_front_of_loop(
        self, prefix: KeyValue, cache: KeyValue
    ) -> tuple[DecoderLayer | list[DecoderLayer], Cache, Cache]:
        """Layers, prefix and cache for `continue_from` in a loop over tokens.

        Taken apart where layers are unrolled; a loop over layers works on the stacks.
        """
        count = self.config.num_layers
        if self.execution.scans(count):
            return self.layers, prefix, cache
        graphdef, state = nnx.split(self.layers)
        layers = [nnx.merge(graphdef, one) for one in unstack(state, count)]
        return layers, unstack(prefix, count), unstack(cache, count)

    def layer_outputs(
        self,
        x: Float[Array, "b t d"],
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
    ) -> Float[Array, "l b t d"]:
        """What each layer hands on, before the final norm; for looking inside."""
        return self._through(x, positions, token_mask, lambda own, out: out)[1]

    def _through(
        self,
        x: Float[Array, "b t d"],
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
        keep: Callable[[KeyValue, jax.Array], PyTree],
        segment: Int[AnyArray, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], PyTree]:
        length = x.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))[None]
        mask = causal & token_mask[:, None, :]
        if segment is not None:
            mask = mask & (segment[:, :, None] == segment[:, None, :])
        angles = self._angles(positions)

        def step(layer: DecoderLayer, x: jax.Array, _: None) -> tuple[jax.Array, PyTree]:
            x = rows_over_data(x)
            mixed, own = layer.self_attn(layer.input_layernorm(x), angles, mask)
            x = rows_over_data(layer.feed_forward(rows_over_data(x + mixed)))
            return x, keep(own, x)

        return run_stack(self.layers, step, x, None, self.execution)

    def continue_from(
        self,
        x: Float[Array, "b g t d"],
        start: Int[Array, " b"],
        prefix: Cache,
        prefix_mask: Bool[AnyArray, "b s"],
        own_mask: Bool[AnyArray, "b g t u"],
        cache: Cache | None = None,
        place: Int[Array, ""] | int = 0,
        layers: DecoderLayer | list[DecoderLayer] | None = None,
    ) -> tuple[Float[Array, "b g t d"], Cache | None]:
        """Text that continues prompts, several continuations a prompt.

        Args:
            x: embeddings.
            start: position of the first continuation token of each prompt.
            prefix: the prompts' keys and values, [l b n s k].
            prefix_mask: False at padding.
            own_mask: which continuation tokens each may look at.
            cache: keys and values of u continuation places, [l b n g u k]; the t new ones are
                written at `place`. None: the t tokens are all there is (u = t).
            place: index of the first of the t tokens in the continuation.
            layers: those of `unstack`, to which `prefix` and `cache` are lists too; the decoder's
                own stack without.

        Returns:
            Hidden states, and the cache with the new entries.
        """
        batch, group, length, width = x.shape
        steps = start[:, None] + place + jnp.arange(length, dtype=jnp.int32)[None]
        positions = jnp.repeat(steps, group, axis=0)[:, None]
        angles = self._angles(jnp.broadcast_to(positions, (batch * group, 3, length)))

        def step(
            layer: DecoderLayer, carry: tuple[jax.Array, Cache | None], entry: PyTree
        ) -> tuple[tuple[jax.Array, Cache | None], None]:
            (x, cache), (number, before) = carry, entry
            x = rows_over_data(x)
            flat = layer.input_layernorm(x).reshape(batch * group, length, width)
            q, new = layer.self_attn.project(flat, angles)
            q = q.reshape(batch, group, *q.shape[1:])
            own = KeyValue(*(x.reshape(batch, group, *x.shape[1:]).swapaxes(1, 2) for x in new))
            if cache is not None:
                cache, own = _written(cache, number, own, place)
            mixed = layer.self_attn.behind_prefix(q, before, own, prefix_mask, own_mask)
            x = layer.feed_forward(rows_over_data(x + mixed))
            return (rows_over_data(x), cache), None

        layers, count = layers or self.layers, self.config.num_layers
        entries: PyTree = (jnp.arange(count, dtype=jnp.int32), prefix)
        if isinstance(layers, list):
            entries = list(enumerate(prefix))
        (x, cache), _ = run_stack(layers, step, (x, cache), entries, self.execution)
        return self.norm(x), cache


def _written(
    cache: Cache, number: jax.Array | int, new: KeyValue, place: jax.Array | int
) -> tuple[Cache, KeyValue]:
    """The cache with layer `number`'s new entries at `place`, and all entries of that layer.

    Written in place: a loop carries the cache, for as an output of it it would be copied whole for
    every token.
    """

    def write(old: jax.Array, fresh: jax.Array, *before: jax.Array | int) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, fresh, (*before, 0, 0, 0, place, 0))

    if isinstance(cache, list):
        own = KeyValue(*map(write, cache[number], new))
        return [*cache[:number], own, *cache[number + 1 :]], own
    whole = KeyValue(*(write(x, y[None], number) for x, y in zip(cache, new, strict=True)))
    return whole, KeyValue(
        *(jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in whole)
    )
