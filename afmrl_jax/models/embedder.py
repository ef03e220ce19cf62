"""Last-token embedding: a listing's vector is where the decoder ends (VLM2Vec)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

UNIT_TOLERANCE = 1e-2
"""How far the norm of a unit vector may be from 1: in bfloat16 it is off by a few thousandths."""


def ends(token_mask: Bool[AnyArray, "b t"]) -> Int[Array, " b"]:
    """Each row's last token that is not padding, on whichever side, counted over b * t."""
    places = jnp.arange(token_mask.shape[1], dtype=jnp.int32)[None]
    last = jnp.max(jnp.where(token_mask, places, 0), axis=1)
    return over_all(last, token_mask.shape[1])


def over_all(places: Int[AnyArray, " b"], length: int) -> Int[Array, " b"]:
    """Places in rows of `length` tokens, counted over all rows."""
    return places + length * jnp.arange(places.shape[0], dtype=jnp.int32)


def hidden_at(hidden: Float[Array, "b t d"], places: Int[AnyArray, " b"]) -> Float[Array, "b d"]:
    """Hidden state [b d] of one token a row: [b t d] at int32 [b]."""
    return jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]


def hidden_in_bins(
    hidden: Float[Array, "n t d"], places: Int[AnyArray, " b"]
) -> Float[Array, "b d"]:
    """Hidden state [b d] at int32 [b] among the n * t places of packed rows."""
    return rows_over_data(jnp.take(hidden.reshape(-1, hidden.shape[-1]), places, axis=0))


def unit(vectors: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors [... d] scaled to length 1, in float32."""
    vectors = vectors.astype(jnp.float32)
    return vectors * jax.lax.rsqrt(jnp.sum(vectors * vectors, -1, keepdims=True) + 1e-12)


def embed_batch(
    model: QwenVL, batch: VLBatch | PackedRows, visual: VisualFeatures | None = None
) -> Float[Array, "b d"]:
    """Unit vectors [b d] in float32.

    Args:
        model: the embedder.
        batch: rows and pictures, b rows.
        visual: features [n s d] where the vision tower has already run, which `batch.visual_start`
            points into.
    """
    if isinstance(batch, PackedRows):
        hidden = model.packed(batch, visual, batch.last[:, None])
    else:
        hidden = model(batch, visual, ends(batch.token_mask)[:, None])
    return unit(hidden[:, 0])
