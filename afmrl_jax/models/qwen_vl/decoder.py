"""The causal decoder of all families, over whole rows or after a shared prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from afmrl_jax.config import Execution, InitConfig, TextConfig
from afmrl_jax.models.qwen_vl.adapters import Adapters
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, uses_fused
from afmrl_jax.models.qwen_vl.decoder_attention import Attention, KeyValue
from afmrl_jax.models.qwen_vl.layers import (
    Keys,
    RMSNorm,
    parted,
    run_layer,
    run_stack,
    stack_layers,
)
from afmrl_jax.models.qwen_vl.rope import Rotary, Turn, mrope_angles
from afmrl_jax.models.qwen_vl.tower_parts import GatedMlp
from afmrl_jax.models.qwen_vl.windows import reordered
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int, PyTree


class Embedded(NamedTuple):
    """What a decoder reads of rows."""

    x: Float[Array, "b t d"]
    """Embeddings."""
    deep: tuple[Float[Array, "b t d"], ...] = ()
    """What is added behind the first layers, one array a layer: zero but at picture places."""


Rows = Embedded | Float[Array, "b t d"]


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(self, config: TextConfig, adapters: Adapters, execution: Execution, *, keys: Keys):
        self.input_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.self_attn = Attention(config, adapters.below("self_attn"), execution, keys=keys)
        self.post_attention_layernorm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        sizes = (config.hidden_dim, config.intermediate_dim)
        self.mlp = GatedMlp(*sizes, bias=False, adapters=adapters.below("mlp"), keys=keys)

    def feed_forward(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """The second half of the block."""
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Token table, layers and final norm.

    Args:
        config: sizes.
        adapters: of the layers.
        execution: types and implementation.
        rotary: angles of positions.
        keys: of the random weights.
    """

    def __init__(
        self,
        config: TextConfig,
        adapters: Adapters,
        execution: Execution,
        *,
        rotary: Rotary = mrope_angles,
        keys: Keys,
    ):
        shape = (config.vocab_size, config.hidden_dim)
        table = InitConfig.embedding * jax.random.normal(keys.draw(), shape, jnp.float32)
        self.embed_tokens = nnx.Param(table)
        own = adapters.below("layers")
        self.layers = stack_layers(
            config.num_layers, lambda: DecoderLayer(config, own, execution, keys=keys), keys
        )
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.config = config
        self.execution = execution
        self.rotary = rotary

    def embed(self, tokens: Int[AnyArray, "*n"]) -> Float[Array, "*n d"]:
        """Rows of the token table, in the type of the activations."""
        return jnp.take(self.embed_tokens[...], tokens, axis=0).astype(self.execution.dtype)

    def table(self, dtype: DTypeLike) -> Float[Array, "v d"]:
        """The token table in a type, for the front of a loop; `embed` casts what it reads."""
        return self.embed_tokens[...].astype(dtype)

    def angles(self, positions: Int[AnyArray, "b 3 t"]) -> Float[Array, "b t f"]:
        """Angles of the rotary positions (time, row, column)."""
        config = self.config
        return self.rotary(positions, config.head_dim, config.rope_theta, config.mrope_section)

    def __call__(
        self,
        x: Rows,
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
        segment: Int[AnyArray, "b t"] | None = None,
        at: Int[AnyArray, "c m"] | None = None,
    ) -> Float[Array, "b t d"] | Float[Array, "c m d"]:
        """Hidden states after the final norm.

        Args:
            x: embeddings, and what is added behind layers.
            positions: time, row and column.
            token_mask: False at padding on either side.
            segment: numbers of texts that share a row and do not see each other; None for one.
            at: the places, counted over b * t, whose states are wanted; None for all.
        """
        found = self._through(x, positions, token_mask, lambda own, out: None, segment, at)
        return self.norm(found[0])

    def prefill(
        self,
        x: Rows,
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
        segment: Int[AnyArray, "b t"] | None = None,
        at: Int[AnyArray, "c m"] | None = None,
        stored: Callable[[KeyValue], KeyValue] = lambda own: own,
    ) -> tuple[Float[Array, "b t d"] | Float[Array, "c m d"], KeyValue]:
        """As a call; also the keys and values of all layers, [l b n t k].

        `stored` may arrange those of a layer otherwise before they are put together.
        """
        x, kept = self._through(x, positions, token_mask, lambda own, _: stored(own), segment, at)
        return self.norm(x), kept

    def layer_outputs(
        self,
        x: Rows,
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
    ) -> Float[Array, "l b t d"]:
        """What each layer hands on, before the final norm; for looking inside."""
        return self._through(x, positions, token_mask, lambda own, out: out)[1]

    def _through(
        self,
        rows: Rows,
        positions: Int[AnyArray, "b 3 t"],
        token_mask: Bool[AnyArray, "b t"],
        keep: Callable[[KeyValue, jax.Array], PyTree],
        segment: Int[AnyArray, "b t"] | None = None,
        at: Int[AnyArray, "c m"] | None = None,
    ) -> tuple[Float[Array, "b t d"] | Float[Array, "c m d"], PyTree]:
        x, deep = rows if isinstance(rows, Embedded) else Embedded(rows)
        turn = Turn.by(self.angles(positions))
        text, execution = self.config, self.execution
        own_rows = token_mask.astype(jnp.int32) if segment is None else segment
        layout = AttentionLayout(causal=True, segments=own_rows)
        order = back = None
        if segment is None and uses_fused(execution.attention, x.dtype, text.head_dim):
            # With what exists in front, causality is all that attention must be told.
            order, back = front_order(token_mask)
            x, turn = reordered(x, order, back), Turn(*(reordered(y, order, back) for y in turn))
            deep = tuple(reordered(y, order, back) for y in deep)
            layout = AttentionLayout(causal=True)

        def returned(x: jax.Array) -> jax.Array:
            """[b t ...] with tokens where they came from."""
            return x if order is None or back is None else reordered(x, back, order)

        numbers = jnp.arange(text.num_layers, dtype=jnp.int32) if deep else None

        def step(
            layer: DecoderLayer, x: jax.Array, number: jax.Array | None
        ) -> tuple[jax.Array, PyTree]:
            x = rows_over_data(x)
            mixed, own = layer.self_attn(layer.input_layernorm(x), turn, layout)
            x = rows_over_data(layer.feed_forward(rows_over_data(x + mixed)))
            x = rows_over_data(x if number is None else _deepened(x, deep, number))
            stored = KeyValue(*(returned(y.swapaxes(1, 2)).swapaxes(1, 2) for y in own))
            return x, keep(stored, returned(x))

        if at is None or order is not None or execution.scans(text.num_layers):
            x, kept = run_stack(self.layers, step, x, numbers, execution)
            return (returned(x) if at is None else _taken(returned(x), at)), kept

        def last(layer: DecoderLayer, x: jax.Array) -> tuple[jax.Array, PyTree]:
            # Of what it gives only those places are read: other tokens need no more than its keys
            # and values. A loop over layers could not tell it from the others.
            mixed, own = layer.self_attn.mixed(layer.input_layernorm(x), turn, layout)
            x = _taken(x, at) + layer.self_attn.o_proj(_taken(mixed, at))
            x = layer.feed_forward(x)
            if len(deep) == text.num_layers:
                x = x + _taken(deep[-1], at).astype(x.dtype)
            return x, keep(own, x)

        front, end = parted(self.layers)
        kept = []
        if front is not None:
            before = None if numbers is None else numbers[:-1]
            x, found = run_stack(front, step, x, before, execution)
            kept.append(found)
        x, found = run_layer(end, last, x, execution)
        kept.append(jax.tree.map(lambda y: y[None], found))
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def continue_from(
        self,
        x: Float[Array, "b g t d"],
        start: Int[Array, " b"],
        prefix: KeyValue,
        prefix_mask: Bool[AnyArray, "b s"],
        own_mask: Bool[AnyArray, "b g t t"],
        shared: Shared | None = None,
    ) -> Float[Array, "b g t d"]:
        """Hidden states of given text that continues prompts, several continuations a prompt.

        Args:
            x: embeddings.
            start: position of the first continuation token of each prompt.
            prefix: the prompts' keys and values, [l b n s k].
            prefix_mask: False at padding.
            own_mask: which continuation tokens each may look at.
            shared: where rows hold several continuations; b is then the number of rows, but for
                `prefix`.
        """
        batch, group, length, width = x.shape
        inside = jnp.arange(length, dtype=jnp.int32) if shared is None else shared.inside
        steps = start[:, None, None] + jnp.broadcast_to(inside, x.shape[:3])
        positions = steps.reshape(batch * group, 1, length)
        turn = Turn.by(self.angles(jnp.broadcast_to(positions, (batch * group, 3, length))))

        def step(layer: DecoderLayer, x: jax.Array, before: KeyValue) -> tuple[jax.Array, None]:
            x = rows_over_data(x)
            if shared is not None:  # Here and not before: one layer's at a time.
                before = KeyValue(*(jnp.take(y, shared.prompt, axis=0) for y in before))
            flat = layer.input_layernorm(x).reshape(batch * group, length, width)
            q, new = layer.self_attn.project(flat, turn)
            q = q.reshape(batch, group, *q.shape[1:])
            own = KeyValue(*(x.reshape(batch, group, *x.shape[1:]).swapaxes(1, 2) for x in new))
            mixed = layer.self_attn.behind_prefix(q, before, own, prefix_mask, own_mask)
            x = layer.feed_forward(rows_over_data(x + mixed))
            return rows_over_data(x), None

        return self.norm(run_stack(self.layers, step, x, prefix, self.execution)[0])


class Shared(NamedTuple):
    """Rows that several continuations of a prompt share."""

    prompt: Int[AnyArray, " b"]
    """Whose they are."""
    inside: Int[AnyArray, "b g t"]
    """How many tokens of its continuation lie before each."""


def _deepened(
    x: Float[Array, "b t d"], deep: tuple[jax.Array, ...], number: Int[Array, ""]
) -> Float[Array, "b t d"]:
    """With what is added behind the layer of that number, if anything is."""
    adds = [lambda x, own=own: x + own.astype(x.dtype) for own in deep]
    return jax.lax.switch(jnp.minimum(number, len(deep)), [*adds, lambda x: x], x)


def _taken(x: Float[Array, "b t d"], at: Int[AnyArray, "c m"]) -> Float[Array, "c m d"]:
    """Vectors at places counted over b * t."""
    return rows_over_data(jnp.take(x.reshape(-1, x.shape[-1]), jnp.asarray(at), axis=0))


def front_order(
    token_mask: Bool[AnyArray, "b t"],
) -> tuple[Int[Array, "b t"], Int[Array, "b t"]]:
    """Places of tokens when rows begin with what exists, and where they go back to.

    Rows are turned, so one that is padded on the right stays as it is.
    """
    length = token_mask.shape[1]
    first = jnp.argmax(jnp.asarray(token_mask), axis=1).astype(jnp.int32)[:, None]
    places = jnp.arange(length, dtype=jnp.int32)[None]
    return (places + first) % length, (places - first) % length
