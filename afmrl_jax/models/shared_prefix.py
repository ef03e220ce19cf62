"""Text after a prompt that is encoded once for all its continuations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.row_packing import PackedPrompts, Prompts
from afmrl_jax.data.batching.tail_packing import TailRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.embedder import ends, unit
from afmrl_jax.models.qwen_vl.attention import AttentionLayout
from afmrl_jax.models.qwen_vl.decoder import Shared
from afmrl_jax.models.qwen_vl.decoder_attention import KeyValue
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.models.qwen_vl.windows import reordered
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int


class Prefix(NamedTuple):
    """Prompts as what continues them reads them."""

    last: Float[Array, "b d"]
    """Hidden states of their last tokens."""
    stored: KeyValue
    """Keys and values of all layers, [l b n s k]."""
    mask: Bool[AnyArray, "b s"]
    """False at padding."""
    start: Int[Array, " b"]
    """The position behind each."""


def prefill(model: QwenVL, prompt: Prompts, visual: VisualFeatures | None = None) -> Prefix:
    """Prompts read once, each a row of its own or several to a bin.

    Args:
        model: generator or embedder.
        prompt: b of them; a `VLBatch` may be padded on either side.
        visual: features [n s d] where the vision tower has already run.
    """
    if isinstance(prompt, PackedPrompts):
        return _out_of_bins(model, prompt, visual)
    embedded = model.inputs(prompt, visual)
    mask, positions = prompt.token_mask, jnp.asarray(prompt.positions)
    last = ends(mask)[:, None]
    hidden, stored = model.model.prefill(embedded, positions, mask, at=last)
    return Prefix(hidden[:, 0], stored, mask, _behind(positions, mask))


def _out_of_bins(model: QwenVL, prompt: PackedPrompts, visual: VisualFeatures | None) -> Prefix:
    packed, bins = prompt.packed, prompt.packed.bins
    visual = model.visual_of(bins) if visual is None else visual
    embedded = model.embed(bins.tokens, visual, packed.visual_number)

    def by_prompt(own: KeyValue) -> KeyValue:
        return KeyValue(*(_taken(x.swapaxes(1, 2), prompt).swapaxes(1, 2) for x in own))

    hidden, stored = model.model.prefill(
        embedded, bins.positions, bins.token_mask, packed.segment, packed.last[:, None], by_prompt
    )
    return Prefix(hidden[:, 0], stored, prompt.mask, _behind(_positions(prompt), prompt.mask))


def _behind(positions: Int[Array, "b 3 s"], mask: Bool[AnyArray, "b s"]) -> Int[Array, " b"]:
    highest = jnp.max(jnp.where(mask[:, None], positions, -1), axis=(1, 2))
    return (highest + 1).astype(jnp.int32)


def _taken(x: jax.Array, prompt: PackedPrompts) -> jax.Array:
    """[n t ...] of bins as [b s ...] of prompts, zero behind their ends."""
    order, back = (jnp.asarray(y).reshape(1, -1) for y in (prompt.places, prompt.back))
    found = reordered(x.reshape(1, -1, *x.shape[2:]), order, back)
    return found.reshape(*prompt.places.shape, *x.shape[2:])


def _positions(prompt: PackedPrompts) -> Int[Array, "b 3 s"]:
    return _taken(jnp.asarray(prompt.packed.bins.positions).swapaxes(1, 2), prompt).swapaxes(1, 2)


def unpacked(prompts: Prompts) -> VLBatch:
    """The prompts one to a row, so that they can be divided by rows."""
    if not isinstance(prompts, PackedPrompts):
        return prompts
    bins = prompts.packed.bins
    tokens = _taken(jnp.asarray(bins.tokens), prompts)
    return bins._replace(tokens=tokens, token_mask=prompts.mask, positions=_positions(prompts))


def continuation(
    model: QwenVL,
    prompt: Prompts,
    tokens: Int[AnyArray, "b g n"],
    mask: Bool[AnyArray, "b g n"],
    visual: VisualFeatures | None = None,
) -> tuple[Float[Array, "b d"], Float[Array, "b g n d"]]:
    """Hidden states of prompts' last tokens and of given continuations.

    Args:
        model: generator or embedder.
        prompt: b prompts, each encoded once.
        tokens: int32 [b g n].
        mask: bool [b g n]; padding after a continuation is False.
        visual: features [n s d] where the vision tower has already run.
    """
    prefix, length = prefill(model, prompt, visual), tokens.shape[2]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    own_mask = causal & mask[:, :, None]
    embedded = model.model.embed(tokens)
    hidden = model.model.continue_from(embedded, prefix.start, prefix.stored, prefix.mask, own_mask)
    return prefix.last, hidden


def packed_continuation(
    model: QwenVL,
    prompt: Prompts,
    tokens: Int[AnyArray, "b g n"],
    tails: TailRows,
    visual: VisualFeatures | None = None,
) -> tuple[Float[Array, "b d"], Float[Array, "r m d"]]:
    """As `continuation`, of several continuations to a row; hidden states stand as the rows do.

    `tails` are of one part, without its axis.
    """
    prefix = prefill(model, prompt, visual)
    own = jnp.take(jnp.asarray(tokens).reshape(-1), jnp.asarray(tails.source), axis=0)
    of = jnp.asarray(tails.prompt)
    layout = AttentionLayout(causal=True, segments=tails.segment)
    hidden = model.model.continue_from(
        model.model.embed(own)[:, None],
        prefix.start[of],
        prefix.stored,
        jnp.asarray(prefix.mask)[of],
        layout.mask(tails.segment.shape[1])[:, None],
        Shared(of, jnp.asarray(tails.inside)[:, None]),
    )
    return prefix.last, hidden[:, 0]


def embed_continuations(
    model: QwenVL,
    prompt: Prompts,
    tokens: Int[AnyArray, "b g n"],
    mask: Bool[AnyArray, "b g n"],
    visual: VisualFeatures | None = None,
) -> Float[Array, "b g d"]:
    """Unit vectors of rows that begin alike: `embed_batch` of prompt + continuation.

    Arguments as in `continuation`; the vector of an empty continuation is the prompt's own.
    """
    last, hidden = continuation(model, prompt, tokens, mask, visual)
    count = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    ends = jnp.maximum(count - 1, 0)[..., None, None]
    vectors = jnp.take_along_axis(hidden, ends, axis=2)[:, :, 0]
    return unit(jnp.where((count > 0)[..., None], vectors, last[:, None]))
