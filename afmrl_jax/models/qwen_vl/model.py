"""Qwen2-VL and Qwen2.5-VL: one class, told apart by the style of its vision tower."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.config import Execution, InitConfig, QwenVLConfig
from afmrl_jax.models.qwen_vl.decoder import Decoder
from afmrl_jax.models.qwen_vl.layers import Keys
from afmrl_jax.models.qwen_vl.vision import VisionStyle, VisionTower
from afmrl_jax.models.token_logprobs import Head
from afmrl_jax.parallel.layout import rows_over_data


class QwenVL(nnx.Module):
    """Vision tower, decoder and head. Attribute names follow the hub's parameter names.

    Reference: Wang et al., Qwen2-VL, arXiv 2409.12191; Bai et al., Qwen2.5-VL, arXiv 2502.13923.
    """

    def __init__(
        self, config: QwenVLConfig, execution: Execution, *, style: VisionStyle, keys: Keys
    ):
        self.visual_tower = VisionTower(config, style, execution, keys=keys)
        self.model = Decoder(config.text, config.lora, execution, keys=keys)
        shape = (config.text.hidden_dim, config.text.vocab_size)
        self.lm_head = (
            None
            if config.text.tie_embeddings
            else nnx.Param(
                InitConfig.embedding * jax.random.normal(keys.draw(), shape, jnp.float32)
            )
        )
        self.config = config

    def visual(self, patches: jax.Array, segment: jax.Array, position: jax.Array) -> jax.Array:
        """Merged visual tokens [n p/merge^2 d] of n bins of patches; see `VisionTower`."""
        return self.visual_tower(patches, segment, position)

    def visual_of(self, batch: Any) -> jax.Array | None:
        """Merged visual tokens [n s d] of a `VLBatch`, where it does not hold them itself.

        None for rows without pictures.
        """
        if batch.visual_tokens is not None or batch.patches is None or not batch.patches.shape[0]:
            return batch.visual_tokens
        return self.visual(batch.patches, batch.patch_segment, batch.patch_position)

    def embed(
        self,
        tokens: jax.Array,
        visual_tokens: jax.Array | None = None,
        visual_start: jax.Array | None = None,
        *,
        shares: int = 1,
    ) -> jax.Array:
        """Token embeddings [b t d], with visual tokens at the picture places.

        Args:
            tokens: int32 [b t].
            visual_tokens: [n s d], or None for text alone; n need not be b.
            visual_start: int32 [b]; the j-th picture place of row i takes visual token
                visual_start[i] + j of all n * s. Needed where there are visual tokens.
            shares: parts of equal size, into which both rows and visual tokens fall; a row finds
                tokens of its own part alone, and counts from that part's first. With a part for
                every device no token has to travel.
        """
        embedded = rows_over_data(self.model.embed(tokens))
        if visual_tokens is None or visual_tokens.shape[0] == 0:
            return embedded
        if visual_start is None:
            raise ValueError("visual tokens without visual_start have no place")
        place = tokens == self.config.image_token_id
        number = visual_start[:, None] + jnp.cumsum(place.astype(jnp.int32), axis=1) - 1
        # Outside the picture places the number may point anywhere; what it finds is not used.
        chosen = _take(visual_tokens, number, shares)
        return rows_over_data(jnp.where(place[..., None], chosen.astype(embedded.dtype), embedded))

    def inputs(self, batch: Any, visual_tokens: jax.Array | None = None) -> jax.Array:
        """Embeddings [b t d] of a `VLBatch`; `visual_tokens` stand in for the vision tower."""
        if visual_tokens is None:
            visual_tokens = self.visual_of(batch)
        return self.embed(batch.tokens, visual_tokens, batch.visual_start)

    def head(self) -> Head:
        """Weights from hidden states to logits: the token table where they are tied."""
        own = self.lm_head
        return Head(self.model.embed_tokens[...], True) if own is None else Head(own[...], False)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Vocabulary logits [... v] in float32."""
        return self.head().logits(hidden)

    def __call__(self, batch: Any, visual_tokens: jax.Array | None = None) -> jax.Array:
        """Hidden states [b t d] behind the final norm."""
        embedded = self.inputs(batch, visual_tokens)
        return self.model(embedded, batch.positions, batch.token_mask)


def _take(visual_tokens: jax.Array, number: jax.Array, shares: int) -> jax.Array:
    """Visual tokens [b t d] by their numbers [b t], each part of the rows from its own part."""
    flat = visual_tokens.reshape(shares, -1, visual_tokens.shape[-1])
    number = jnp.clip(number, 0, flat.shape[1] - 1)
    if shares == 1:
        return jnp.take(flat[0], number, axis=0)
    chosen = jax.vmap(lambda own, at: jnp.take(own, at, axis=0))(flat, number.reshape(shares, -1))
    return chosen.reshape(*number.shape, -1)
