"""The decoder in a loop over tokens: what a turn reads lies ready in front of the loop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.models.qwen_vl.attention import MASKED
from afmrl_jax.models.qwen_vl.decoder import Decoder, DecoderLayer
from afmrl_jax.models.qwen_vl.decoder_attention import KeyValue, normed
from afmrl_jax.models.qwen_vl.layers import (
    Affine,
    RMSNorm,
    TurnedAffine,
    for_few_rows,
    side_by_side,
    unstack,
)
from afmrl_jax.models.qwen_vl.rope import Turn, rotate
from afmrl_jax.parallel.layout import rows_over_data, splits_matrices
from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

WIDE = jnp.float32
"""Type of scores and of sums."""


Map = Affine | TurnedAffine


class _Layer(NamedTuple):
    """A decoder layer as a turn reads it: maps of one input are one, where no mesh splits them."""

    input_norm: RMSNorm
    qkv: tuple[Map, ...]
    qk_norms: tuple[RMSNorm | None, RMSNorm | None]
    out: Map
    mlp_norm: RMSNorm
    gate_up: tuple[Map, ...]
    down: Map


class TokenLoop:
    """One token after the other, several continuations a prompt.

    Each weight is read once a token, in the type of the activations. Inside a loop XLA would cut
    every layer out of the stack, and cast it, anew for each token: three times the bytes of the
    weights on an H100, and on a CPU more time than all products. So the layers are taken apart,
    cast, and their adapters merged in front of the loop, which takes a copy of the decoder in
    memory. The merged sum is rounded to the activations' type once, so in bfloat16 its
    log-probabilities differ a little from those of the adapters by themselves.

    Args:
        decoder: whose layers run.
        prefix: keys and values of the prompts, [l b n s k]; stored once for a group.
        prefix_mask: False at padding.
        start: position of the first token of each prompt's continuations.
        group: continuations of a prompt.
        budget: tokens that each may have.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: KeyValue,
        prefix_mask: Bool[AnyArray, "b s"],
        start: Int[Array, " b"],
        *,
        group: int,
        budget: int,
    ):
        count = decoder.config.num_layers
        graphdef, state = nnx.split(decoder.layers)
        dtype = jnp.dtype(decoder.execution.dtype)
        parts = [nnx.merge(graphdef, part) for part in unstack(state, count)]
        rows = prefix_mask.shape[0] * group
        self._layers = [_ready(layer, dtype, rows) for layer in parts]
        self._prefix = unstack(prefix, count)
        self._prefix_mask = jnp.asarray(prefix_mask)
        self._start = start
        self._decoder = decoder
        self._group, self._budget = group, budget

    def empty(self) -> list[KeyValue]:
        """Keys and values of each layer that the loop carries, without a token yet.

        Those of all continuations, [b n g u k]; of a single one a prompt behind the prompt's,
        [b n s+u k], for where nothing is shared one product is faster than two. A single prompt's
        are [n s+u k]: with an axis of one, XLA makes a second cache beside that of the loop.
        """

        def room(x: Float[Array, "b n s k"]) -> jax.Array:
            if self._group == 1:
                behind = jnp.pad(x, ((0, 0), (0, 0), (0, self._budget), (0, 0)))
                return behind[0] if x.shape[0] == 1 else behind
            shape = (*x.shape[:2], self._group, self._budget, x.shape[-1])
            return jnp.zeros(shape, x.dtype)

        return [KeyValue(room(x.key), room(x.value)) for x in self._prefix]

    def __call__(
        self, x: Float[Array, "b g d"], place: Int[Array, ""], cache: list[KeyValue]
    ) -> tuple[Float[Array, "b g d"], list[KeyValue]]:
        """Hidden states after the final norm of the tokens at `place` of all continuations.

        Args:
            x: embeddings of the tokens.
            place: index in the continuation.
            cache: of `empty`, or of the place before.

        Returns:
            Hidden states, and the cache with the new entries.
        """
        batch, group, width = x.shape
        decoder = self._decoder
        position = jnp.repeat(self._start + place, group)
        angles = decoder.angles(jnp.broadcast_to(position[:, None, None], (batch * group, 3, 1)))
        turn = Turn.by(angles)
        rows, written = rows_over_data(x.reshape(batch * group, width)), []
        for layer, prefix, own in zip(self._layers, self._prefix, cache, strict=True):
            q, new = self._project(layer, rows, turn)
            # In place: XLA updates what the loop carries.
            own = KeyValue(*(self._at(place, *pair) for pair in zip(own, new, strict=True)))
            written.append(own)
            mixed = layer.out(self._attend(q, prefix, own, place).reshape(batch * group, -1))
            rows = rows_over_data(rows + mixed)
            gate, up = _each(
                layer.gate_up, layer.mlp_norm(rows), (decoder.config.intermediate_dim,)
            )
            rows = rows_over_data(rows + layer.down(jax.nn.silu(gate) * up))
        return decoder.norm(rows).reshape(batch, group, width), written

    def _project(
        self, layer: _Layer, rows: Float[Array, "c d"], turn: Turn
    ) -> tuple[Float[Array, "b n g r k"], KeyValue]:
        """Rotated queries, r to a key head, and the new keys and values, [b n g 1 k]."""
        config, group = self._decoder.config, self._group
        heads, narrow, size = config.num_heads, config.num_kv_heads, config.head_dim
        cuts = heads * size, (heads + narrow) * size
        found = _each(layer.qkv, layer.input_norm(rows), cuts)
        q, k, v = (x.reshape(x.shape[0], 1, -1, size) for x in found)
        q, k = (rotate(x, turn) for x in normed(q, k, *layer.qk_norms))
        shape = (-1, group, narrow)
        q = (q * size**-0.5).reshape(*shape, heads // narrow, size).swapaxes(1, 2)
        k, v = (x.reshape(*shape, 1, size).swapaxes(1, 2) for x in (k, v))
        return q, KeyValue(k, v)

    def _at(
        self, place: Int[Array, ""], old: Float[Array, "*of s k"], new: Float[Array, "b n g 1 k"]
    ) -> Float[Array, "*of s k"]:
        if self._group == 1:
            place = old.shape[-2] - self._budget + place
        new = new.reshape(*old.shape[:-2], 1, old.shape[-1])
        return jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=-2)

    def _attend(
        self,
        q: Float[Array, "b n g r k"],
        prefix: KeyValue,
        own: KeyValue,
        place: Int[Array, ""],
    ) -> Float[Array, "b g n r k"]:
        """Attention to the prompt and to what the continuation has so far."""
        written = jnp.arange(self._budget, dtype=jnp.int32) <= place
        if self._group > 1:
            return _behind_shared(q, prefix, own, self._prefix_mask, written)
        batch, heads, _, shared, size = q.shape
        seen = jnp.broadcast_to(written[None], (batch, self._budget))
        seen = jnp.concatenate([self._prefix_mask, seen], axis=1)
        one = q.reshape(*own.key.shape[:-2], shared, size)
        scores = jnp.einsum("...qk,...sk->...qs", one, own.key, preferred_element_type=WIDE)
        scores = jnp.where(seen.reshape(batch, *(1,) * (one.ndim - 2), -1), scores, MASKED)
        # Divided before the product, so that scores are read once.
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = jnp.einsum("...qs,...sk->...qk", weights, own.value)
        return out.reshape(batch, 1, heads, shared, size)


def _behind_shared(
    q: Float[Array, "b n g r k"],
    prefix: KeyValue,
    own: KeyValue,
    prefix_mask: Bool[Array, "b s"],
    written: Bool[Array, " u"],
) -> Float[Array, "b g n r k"]:
    """One softmax over a prompt's keys, for all its continuations at once, and each one's own."""
    batch, heads, group, shared, size = q.shape
    together = q.reshape(batch, heads, group * shared, size)
    before = jnp.einsum("bnqk,bnsk->bnqs", together, prefix.key, preferred_element_type=WIDE)
    within = jnp.einsum("bngrk,bnguk->bngru", q, own.key, preferred_element_type=WIDE)
    before = jnp.where(prefix_mask[:, None, None], before, MASKED)
    within = jnp.where(written[None, None, None, None], within, MASKED)
    highest = jnp.maximum(jnp.max(before, axis=-1).reshape(q.shape[:-1]), jnp.max(within, axis=-1))[
        ..., None
    ]
    before = jnp.exp(before - highest.reshape(*together.shape[:-1], 1))
    within = jnp.exp(within - highest)
    total = jnp.sum(before, axis=-1).reshape(q.shape[:-1]) + jnp.sum(within, axis=-1)
    before, within = before.astype(q.dtype), within.astype(q.dtype)
    out = jnp.einsum("bnqs,bnsk->bnqk", before, prefix.value, preferred_element_type=WIDE)
    out = out.reshape(q.shape) + jnp.einsum(
        "bngru,bnguk->bngrk", within, own.value, preferred_element_type=WIDE
    )
    return (out / total[..., None]).astype(q.dtype).swapaxes(1, 2)


def _ready(layer: DecoderLayer, dtype: jnp.dtype, rows: int) -> _Layer:
    def group(*maps: Affine) -> tuple[Map, ...]:
        # Columns that a mesh splits would have to travel for it, and a CPU gains less by it than
        # the copy costs.
        apart = splits_matrices() or built_for() == "cpu"
        joined = maps if apart else (side_by_side(maps),)
        return tuple(for_few_rows(one, rows) for one in joined)

    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm,
        group(*(x.affine(dtype) for x in (attention.q_proj, attention.k_proj, attention.v_proj))),
        (attention.q_norm, attention.k_norm),
        for_few_rows(attention.o_proj.affine(dtype), rows),
        layer.post_attention_layernorm,
        group(*(x.affine(dtype) for x in (mlp.gate_proj, mlp.up_proj))),
        for_few_rows(mlp.down_proj.affine(dtype), rows),
    )


def _each(maps: tuple[Map, ...], x: Float[Array, "c d"], cuts: tuple[int, ...]) -> list[jax.Array]:
    """What each of several maps gives; `cuts` are the columns where one ends in their union."""
    return jnp.split(maps[0](x), cuts, axis=-1) if len(maps) == 1 else [one(x) for one in maps]
