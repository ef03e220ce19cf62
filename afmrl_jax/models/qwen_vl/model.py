"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one class, told apart by the style of its vision tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.config import Execution, InitConfig, QwenVLConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.images import Normalization
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.qwen_vl.adapters import Adapters
from afmrl_jax.models.qwen_vl.decoder import Decoder, Embedded
from afmrl_jax.models.qwen_vl.kept_features import apart
from afmrl_jax.models.qwen_vl.layers import Keys
from afmrl_jax.models.qwen_vl.pixels import normalized
from afmrl_jax.models.qwen_vl.rope import Rotary, mrope_angles
from afmrl_jax.models.qwen_vl.tower_parts import VisionStyle
from afmrl_jax.models.qwen_vl.vision import VisionTower
from afmrl_jax.models.token_logprobs import Head
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import AnyArray, Array, Float, Int, Real


class QwenVL(nnx.Module):
    """Vision tower, decoder and head. Attribute names follow the hub's parameter names.

    Reference: Wang et al., Qwen2-VL, arXiv 2409.12191; Bai et al., Qwen2.5-VL, arXiv 2502.13923 and
    Qwen3-VL, arXiv 2511.21631.
    """

    def __init__(
        self,
        config: QwenVLConfig,
        execution: Execution,
        *,
        style: VisionStyle,
        rotary: Rotary = mrope_angles,
        keys: Keys,
    ):
        own = Adapters.of(config)
        self.visual_tower = VisionTower(
            config, style, execution, adapters=own.below("visual_tower"), keys=keys
        )
        self.model = Decoder(config.text, own.below("model"), execution, rotary=rotary, keys=keys)
        shape = (config.text.hidden_dim, config.text.vocab_size)
        self.lm_head = (
            None
            if config.text.tie_embeddings
            else nnx.Param(
                InitConfig.embedding * jax.random.normal(keys.draw(), shape, jnp.float32)
            )
        )
        self.config = config

    def visual(
        self,
        patches: Real[AnyArray, "n p d"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
        normalization: Normalization | None = None,
    ) -> VisualFeatures:
        """Features [n p/merge^2 d] of n bins of patches; see `VLBatch` and `VisionTower`."""
        numbers = normalized(patches, normalization, self.config.vision.temporal_patch_size)
        return self.visual_tower(numbers, segment, position)

    def visual_of(self, batch: VLBatch) -> VisualFeatures | None:
        """Features [n s d] of a batch's pictures: its own, or those the tower gives.

        None for rows without pictures.
        """
        if batch.visual is not None or batch.patches is None or not batch.patches.shape[0]:
            return batch.visual
        assert batch.patch_segment is not None
        assert batch.patch_position is not None
        return self.visual(
            batch.patches, batch.patch_segment, batch.patch_position, batch.normalization
        )

    def embed(
        self,
        tokens: Int[AnyArray, "b t"],
        visual: VisualFeatures | None = None,
        visual_start: Int[AnyArray, " b"] | Int[AnyArray, "b t"] | None = None,
        *,
        shares: int = 1,
    ) -> Embedded:
        """Token embeddings, with visual tokens at the picture places.

        Args:
            tokens: int32 [b t].
            visual: arrays [n s d], or None for text only; n need not be b.
            visual_start: int32 [b]; the j-th picture place of row i takes visual token
                visual_start[i] + j of all n * s. Or int32 [b t], the number of each place's token.
                Needed where there are visual tokens.
            shares: parts of equal size, into which both rows and visual tokens fall; a row finds
                tokens of its own part alone, and counts from that part's first. With a part for
                every device no token has to travel.
        """
        embedded = rows_over_data(self.model.embed(tokens))
        if visual is None or visual.tokens.shape[0] == 0:
            return Embedded(embedded)
        # Out of a cache all arrays come side by side.
        visual = apart(visual, self.config.text.hidden_dim)
        if visual_start is None:
            raise ValueError("visual tokens without visual_start have no place")
        place = tokens == self.config.image_token_id
        number = jnp.asarray(visual_start)
        if number.ndim == 1:
            number = number[:, None] + jnp.cumsum(place.astype(jnp.int32), axis=1) - 1

        def put(tokens: AnyArray, around: jax.Array) -> jax.Array:
            # Outside the picture places the number may point anywhere; what it finds is not used.
            chosen = _take(tokens, number, shares).astype(embedded.dtype)
            return rows_over_data(jnp.where(place[..., None], chosen, around))

        nothing = jnp.zeros((), embedded.dtype)
        deep = tuple(put(tokens, nothing) for tokens in visual.deep)
        return Embedded(put(visual.tokens, embedded), deep)

    def inputs(self, batch: VLBatch, visual: VisualFeatures | None = None) -> Embedded:
        """Embeddings of a batch; where `visual` is given, the vision tower does not run."""
        if visual is None:
            visual = self.visual_of(batch)
        return self.embed(batch.tokens, visual, batch.visual_start)

    def head(self) -> Head:
        """Weights from hidden states to logits: the token table where they are tied."""
        own = self.lm_head
        return Head(self.model.embed_tokens[...], True) if own is None else Head(own[...], False)

    def logits(self, hidden: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """Vocabulary logits in float32."""
        return self.head().logits(hidden)

    def __call__(
        self,
        batch: VLBatch,
        visual: VisualFeatures | None = None,
        at: Int[AnyArray, "c m"] | None = None,
    ) -> Float[Array, "b t d"] | Float[Array, "c m d"]:
        """Hidden states after the final norm: all, or those `at` places counted over b * t."""
        embedded = self.inputs(batch, visual)
        return self.model(embedded, batch.positions, batch.token_mask, at=at)

    def packed(
        self,
        rows: PackedRows,
        visual: VisualFeatures | None = None,
        at: Int[AnyArray, "c m"] | None = None,
    ) -> Float[Array, "n t d"] | Float[Array, "c m d"]:
        """Hidden states of rows in bins, each as if it stood alone; `at` as of a call."""
        bins = rows.bins
        visual = self.visual_of(bins) if visual is None else visual
        embedded = self.embed(bins.tokens, visual, rows.visual_number)
        return self.model(embedded, bins.positions, bins.token_mask, rows.segment, at)


def _take(
    visual_tokens: Float[AnyArray, "n s d"], number: Int[Array, "b t"], shares: int
) -> Float[Array, "b t d"]:
    """Visual tokens by their numbers, each part of the rows from its own part."""
    flat = visual_tokens.reshape(shares, -1, visual_tokens.shape[-1])
    number = jnp.clip(number, 0, flat.shape[1] - 1)
    if shares == 1:
        return jnp.take(flat[0], number, axis=0)
    chosen = jax.vmap(lambda own, at: jnp.take(own, at, axis=0))(flat, number.reshape(shares, -1))
    return chosen.reshape(*number.shape, -1)
