"""Text after a prompt that is encoded once for all its continuations."""

from __future__ import annotations

import jax.numpy as jnp

from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.embedder import last_token, unit
from afmrl_jax.models.qwen_vl.decoder import KeyValue
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int


def prefill(
    model: QwenVL, prompt: VLBatch, visual: VisualFeatures | None = None
) -> tuple[Float[Array, "b d"], KeyValue, Int[Array, " b"]]:
    """Last hidden state of the prompts, their keys and values, and the next position.

    Args:
        model: generator or embedder.
        prompt: a `VLBatch` padded on either side, b rows.
        visual: features [n s d] where the vision tower has already run.
    """
    embedded = model.inputs(prompt, visual)
    hidden, prefix = model.model.prefill(embedded, prompt.positions, prompt.token_mask)
    highest = jnp.max(jnp.where(prompt.token_mask[:, None], prompt.positions, -1), axis=(1, 2))
    return last_token(hidden, prompt.token_mask), prefix, (highest + 1).astype(jnp.int32)


def continuation(
    model: QwenVL,
    prompt: VLBatch,
    tokens: Int[AnyArray, "b g n"],
    mask: Bool[AnyArray, "b g n"],
    visual: VisualFeatures | None = None,
) -> tuple[Float[Array, "b d"], Float[Array, "b g n d"]]:
    """Hidden states of prompts' last tokens and of given continuations.

    Args:
        model: generator or embedder.
        prompt: a `VLBatch`, b rows, each encoded once.
        tokens: int32 [b g n].
        mask: bool [b g n]; padding after a continuation is False.
        visual: features [n s d] where the vision tower has already run.
    """
    last, prefix, start = prefill(model, prompt, visual)
    length = tokens.shape[2]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    own_mask = causal & mask[:, :, None]
    embedded = model.model.embed(tokens)
    hidden = model.model.continue_from(embedded, start, prefix, prompt.token_mask, own_mask)
    return last, hidden


def embed_continuations(
    model: QwenVL,
    prompt: VLBatch,
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
