"""What vision towers are made of, and which of it is whose: MLPs, mergers, learned positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from afmrl_jax.config import VisionConfig
from afmrl_jax.models.qwen_vl.adapters import NO_ADAPTERS, Adapters
from afmrl_jax.models.qwen_vl.layers import Keys, LayerNorm, Linear, RMSNorm
from afmrl_jax.types import AnyArray, Array, Float, Int

Norm = Callable[[int, float], nnx.Module]
"""Of a width and an epsilon."""


class QuickGeluMlp(nnx.Module):
    """Qwen2-VL's MLP."""

    def __init__(self, config: VisionConfig, adapters: Adapters, *, keys: Keys):
        wide, inner = config.embed_dim, config.intermediate
        self.fc1 = Linear(wide, inner, bias=True, adapter=adapters("fc1"), keys=keys)
        self.fc2 = Linear(inner, wide, bias=True, adapter=adapters("fc2"), keys=keys)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself."""
        x = self.fc1(x)
        return self.fc2(x * jax.nn.sigmoid(1.702 * x))


class GatedMlp(nnx.Module):
    """SiLU-gated MLP: with biases in Qwen2.5-VL's vision tower, without in both decoders."""

    def __init__(
        self,
        size: int,
        intermediate: int,
        *,
        bias: bool,
        keys: Keys,
        adapters: Adapters = NO_ADAPTERS,
    ):
        def linear(name: str, inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, bias=bias, adapter=adapters(name), keys=keys)

        self.gate_proj = linear("gate_proj", size, intermediate)
        self.up_proj = linear("up_proj", size, intermediate)
        self.down_proj = linear("down_proj", intermediate, size)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class GeluMlp(nnx.Module):
    """Qwen3-VL's MLP, under its published names."""

    def __init__(self, config: VisionConfig, adapters: Adapters, *, keys: Keys):
        def linear(name: str, inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, bias=True, adapter=adapters(name), keys=keys)

        self.linear_fc1 = linear("linear_fc1", config.embed_dim, config.intermediate)
        self.linear_fc2 = linear("linear_fc2", config.intermediate, config.embed_dim)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself."""
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=True))


class PatchMerger(nnx.Module):
    """Joins merge_size^2 neighbouring patches into one token of the decoder's width."""

    def __init__(self, vision: VisionConfig, norm: Norm, adapters: Adapters, *, keys: Keys):
        self.ln_q = norm(vision.embed_dim, 1e-6)
        joined = vision.embed_dim * vision.merge_size**2
        self.mlp_0 = Linear(joined, joined, bias=True, adapter=adapters("mlp_0"), keys=keys)
        self.mlp_2 = Linear(joined, vision.out_dim, bias=True, adapter=adapters("mlp_2"), keys=keys)
        self.joined = joined

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n p d] to [n p/merge^2 out], each square of patches joined."""
        x = self.ln_q(x).reshape(x.shape[0], -1, self.joined)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class Qwen3Merger(nnx.Module):
    """Qwen3-VL's merger: the last one norms patches, the deep ones what is joined."""

    def __init__(
        self,
        vision: VisionConfig,
        norm: Norm,
        adapters: Adapters,
        *,
        keys: Keys,
        deep: bool = False,
    ):
        def linear(name: str, outputs: int) -> Linear:
            return Linear(joined, outputs, bias=True, adapter=adapters(name), keys=keys)

        joined = vision.embed_dim * vision.merge_size**2
        self.norm = norm(joined if deep else vision.embed_dim, 1e-6)
        self.linear_fc1 = linear("linear_fc1", joined)
        self.linear_fc2 = linear("linear_fc2", vision.out_dim)
        self.joined, self.deep = joined, deep

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n p d] to [n p/merge^2 out], each square of patches joined."""
        shape = (x.shape[0], -1, self.joined)
        x = self.norm(x.reshape(shape)) if self.deep else self.norm(x).reshape(shape)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))


@dataclass(frozen=True)
class VisionStyle:
    """What tells the vision towers of the families apart."""

    norm: Norm
    mlp: Callable[[VisionConfig, Adapters, Keys], nnx.Module]
    """The second half of a block."""
    gated: bool
    """Whether the MLP multiplies two maps of its input, so that it has three matrices, not two."""
    windows: bool
    """Whether blocks look within windows, all but `VisionConfig.full_attention_blocks`."""
    merger: Callable[..., PatchMerger | Qwen3Merger] = PatchMerger
    """Of a `VisionConfig`, a norm, adapters and `keys`; with deep blocks also of `deep`."""
    patch_bias: bool = False
    """Whether the map from pixels to vectors has a bias."""


QWEN2_VISION = VisionStyle(
    # This family fixes the epsilon.
    norm=lambda size, eps: LayerNorm(size, 1e-6),
    mlp=lambda config, adapters, keys: QuickGeluMlp(config, adapters, keys=keys),
    gated=False,
    windows=False,
)
QWEN2_5_VISION = VisionStyle(
    norm=RMSNorm,
    mlp=lambda config, adapters, keys: GatedMlp(
        config.embed_dim, config.intermediate, bias=True, adapters=adapters, keys=keys
    ),
    gated=True,
    windows=True,
)


QWEN3_VISION = VisionStyle(
    # This family fixes the epsilon.
    norm=lambda size, eps: LayerNorm(size, 1e-6),
    mlp=lambda config, adapters, keys: GeluMlp(config, adapters, keys=keys),
    gated=False,
    windows=False,
    merger=Qwen3Merger,
    patch_bias=True,
)


def stretched_positions(
    table: Float[Array, "s d"],
    side: int,
    segment: Int[AnyArray, "n p"],
    position: Int[AnyArray, "n p 2"],
) -> Float[Array, "n p d"]:
    """Learned positions of patches: a square table stretched over each picture, its corners on the
    picture's, linear in between. As `F.interpolate(mode="bilinear", align_corners=True)`.

    Args:
        table: of side * side places, row by row.
        side: of the table.
        segment: number of the picture inside the bin; 0 is padding.
        position: (row, column) in patches.
    """
    segment, position = jnp.asarray(segment), jnp.asarray(position)
    same = segment[:, :, None] == segment[:, None]
    # The last row and column of each patch's picture.
    last = jnp.max(jnp.where(same[..., None], position[:, None], 0), axis=2)
    steps = jnp.float32(side - 1) / jnp.maximum(last, 1).astype(jnp.float32)
    at = jnp.minimum(position.astype(jnp.float32) * steps, jnp.float32(side - 1))
    low = jnp.floor(at).astype(jnp.int32)
    share = at - low.astype(jnp.float32)
    high = jnp.minimum(low + 1, side - 1)
    out = jnp.zeros((*segment.shape, table.shape[-1]), jnp.float32)
    for row, down in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
        for column, along in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
            found = jnp.take(table, row * side + column, axis=0).astype(jnp.float32)
            out = out + (down * along)[..., None] * found
    return out
