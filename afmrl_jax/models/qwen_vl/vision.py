"""The vision towers of Qwen2-VL and Qwen2.5-VL: patches in, merged visual tokens out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from afmrl_jax.config import Execution, LoraConfig, QwenVLConfig, VisionConfig
from afmrl_jax.config.validation import require
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend
from afmrl_jax.models.qwen_vl.layers import (
    Keys,
    LayerNorm,
    Linear,
    RMSNorm,
    run_stack,
    stack_layers,
)
from afmrl_jax.models.qwen_vl.rope import rotate, vision_angles
from afmrl_jax.models.qwen_vl.windows import (
    Windows,
    make_windows,
    rows_of_windows,
    window_numbers,
)
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.types import AnyArray, Array, Float, Int, PyTree


@dataclass(frozen=True)
class View:
    """What patches see: all of their own segment, or where `windows` is given, their window."""

    layout: AttentionLayout
    windows: Windows | None = None
    """Where the segments of `layout` are computed as rows of their own."""


LESS_IN_WINDOWS = 2
"""How many times fewer pairs windows must have as rows than a mask, because rows are copied."""


class VisionAttention(nnx.Module):
    """Self-attention over patches with 2-D rotary positions."""

    def __init__(self, config: VisionConfig, execution: Execution, *, keys: Keys):
        size = config.embed_dim
        self.qkv = Linear(size, 3 * size, bias=True, keys=keys)
        self.proj = Linear(size, size, bias=True, keys=keys)
        self.num_heads = config.num_heads
        self.implementation = execution.attention

    def __call__(
        self,
        x: Float[Array, "n p d"],
        angles: Float[Array, "n p f"],
        views: tuple[View, ...],
        number: Int[Array, ""] | None = None,
    ) -> Float[Array, "n p d"]:
        """Patches with rotary `angles`; `number` says which of the views is looked through."""
        batch, patches, size = x.shape
        qkv = self.qkv(x).reshape(batch, patches, 3, self.num_heads, size // self.num_heads)
        q, k = rotate(qkv[:, :, 0], angles), rotate(qkv[:, :, 1], angles)
        looks = [partial(self._through, view) for view in views]
        if number is None:
            return self.proj(looks[0](q, k, qkv[:, :, 2]))
        return self.proj(jax.lax.switch(number, looks, q, k, qkv[:, :, 2]))

    def _through(
        self,
        view: View,
        q: Float[Array, "n p h k"],
        k: Float[Array, "n p h k"],
        v: Float[Array, "n p h k"],
    ) -> Float[Array, "n p d"]:
        windows, layout = view.windows, view.layout
        if windows is not None:
            q, k, v = windows.rows(q), windows.rows(k), windows.rows(v)
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        out = attend(q, k, v, layout, self.implementation)
        return out if windows is None else windows.patches(out)


class QuickGeluMlp(nnx.Module):
    """Qwen2-VL's MLP."""

    def __init__(self, config: VisionConfig, *, keys: Keys):
        self.fc1 = Linear(config.embed_dim, config.intermediate, bias=True, keys=keys)
        self.fc2 = Linear(config.intermediate, config.embed_dim, bias=True, keys=keys)

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
        lora: LoraConfig | None = None,
    ):
        def linear(name: str, inputs: int, outputs: int) -> Linear:
            own = lora if lora is not None and name in lora.targets else None
            return Linear(inputs, outputs, bias=bias, lora=own, keys=keys)

        self.gate_proj = linear("gate_proj", size, intermediate)
        self.up_proj = linear("up_proj", size, intermediate)
        self.down_proj = linear("down_proj", intermediate, size)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class VisionStyle:
    """What tells the vision towers of the families apart."""

    norm: Callable[[int, float], nnx.Module]
    """Of a width and an epsilon."""
    mlp: Callable[[VisionConfig, Keys], nnx.Module]
    """The second half of a block."""
    gated: bool
    """Whether the MLP multiplies two maps of its input, so that it has three matrices, not two."""
    windows: bool
    """Whether blocks look within windows, all but `VisionConfig.full_attention_blocks`."""


QWEN2_VISION = VisionStyle(
    # This family fixes the epsilon.
    norm=lambda size, eps: LayerNorm(size, 1e-6),
    mlp=lambda config, keys: QuickGeluMlp(config, keys=keys),
    gated=False,
    windows=False,
)
QWEN2_5_VISION = VisionStyle(
    norm=RMSNorm,
    mlp=lambda config, keys: GatedMlp(config.embed_dim, config.intermediate, bias=True, keys=keys),
    gated=True,
    windows=True,
)


class VisionBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, vision: VisionConfig, style: VisionStyle, execution: Execution, *, keys: Keys
    ):
        size, eps = vision.embed_dim, vision.rms_norm_eps
        self.norm1 = style.norm(size, eps)
        self.norm2 = style.norm(size, eps)
        self.mlp = style.mlp(vision, keys)
        self.attn = VisionAttention(vision, execution, keys=keys)

    def __call__(
        self,
        x: Float[Array, "n p d"],
        angles: Float[Array, "n p f"],
        views: tuple[View, ...],
        number: Int[Array, ""] | None = None,
    ) -> Float[Array, "n p d"]:
        """As in `VisionAttention`."""
        x = rows_over_data(x)
        x = rows_over_data(x + self.attn(self.norm1(x), angles, views, number))
        return rows_over_data(x + self.mlp(self.norm2(x)))


class PatchEmbed(nnx.Module):
    """Flattened patches to vectors: a convolution whose stride is its size."""

    def __init__(self, config: VisionConfig, *, keys: Keys):
        inputs = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.proj = Linear(inputs, config.embed_dim, bias=False, keys=keys)

    def __call__(self, patches: Float[AnyArray, "n p f"]) -> Float[Array, "n p d"]:
        """Of each patch by itself."""
        return self.proj(jnp.asarray(patches))


class PatchMerger(nnx.Module):
    """Joins merge_size^2 neighbouring patches into one token of the decoder's width."""

    def __init__(self, vision: VisionConfig, style: VisionStyle, *, keys: Keys):
        self.ln_q = style.norm(vision.embed_dim, 1e-6)
        joined = vision.embed_dim * vision.merge_size**2
        self.mlp_0 = Linear(joined, joined, bias=True, keys=keys)
        self.mlp_2 = Linear(joined, vision.out_dim, bias=True, keys=keys)
        self.joined = joined

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n p d] to [n p/merge^2 out], each square of patches joined."""
        x = self.ln_q(x).reshape(x.shape[0], -1, self.joined)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Patch embedding, blocks and merger.

    Within Qwen2.5-VL's windows, attention is computed with windows as rows, see `Windows`, unless
    bins are so small that a mask costs less. The reference permutes patches once and undoes it
    after the merger; the numbers are the same.
    """

    def __init__(
        self, config: QwenVLConfig, style: VisionStyle, execution: Execution, *, keys: Keys
    ):
        vision = config.vision
        unit = vision.patch_size * vision.merge_size
        require(
            not style.windows or vision.window_size % unit == 0,
            f"window_size must be a multiple of {unit} pixels",
        )
        self.patch_embed = PatchEmbed(vision, keys=keys)
        self.blocks = stack_layers(
            vision.depth, lambda: VisionBlock(vision, style, execution, keys=keys), keys
        )
        self.merger = PatchMerger(vision, style, keys=keys)
        self.config = config
        self.windows = style.windows
        self.execution = execution

    def __call__(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
    ) -> Float[Array, "n s d"]:
        """Merged tokens, s = p / merge_size^2, of patches in merge-block order.

        Args:
            patches: flattened normalised pixels; several pictures may share a bin n.
            segment: number of the picture inside the bin, from 1; 0 is padding.
            position: (row, column) in patches.
        """
        return self.merger(self._through(patches, segment, position, lambda out: None)[0])

    def block_outputs(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
    ) -> Float[Array, "l n p d"]:
        """What each block hands on; for looking inside."""
        return self._through(patches, segment, position, lambda out: out)[1]

    def _through(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
        keep: Callable[[jax.Array], PyTree],
    ) -> tuple[Float[Array, "n p d"], PyTree]:
        vision = self.config.vision
        angles = vision_angles(position, vision.embed_dim // vision.num_heads)
        views, numbers = self._views(segment, position)

        def step(
            block: VisionBlock, x: jax.Array, number: jax.Array | None
        ) -> tuple[jax.Array, PyTree]:
            x = block(x, angles, views, number)
            return x, keep(x)

        x = self.patch_embed(patches.astype(self.execution.dtype))
        return run_stack(self.blocks, step, x, numbers, self.execution)

    def _views(
        self, segment: Int[AnyArray, "n p"], position: Int[AnyArray, "n p 2"]
    ) -> tuple[tuple[View, ...], Int[Array, " l"] | None]:
        """What blocks look through, and the number of each block's; None if all have the first."""
        vision = self.config.vision
        whole = View(AttentionLayout(segments=jnp.asarray(segment)))
        if not self.windows:
            return (whole,), None
        side, count = vision.window_size // vision.patch_size, segment.shape[1]
        numbers = window_numbers(segment, position, side)
        rows, places = rows_of_windows(count, side)
        windowed = View(AttentionLayout(segments=numbers))
        if rows * places**2 <= count**2 // LESS_IN_WINDOWS:
            windows = make_windows(numbers, side)
            windowed = View(AttentionLayout(segments=windows.segments), windows)
        full = np.isin(np.arange(vision.depth), vision.full_attention_blocks)
        if full.all() or not full.any():
            return (whole if full.all() else windowed,), None
        return (windowed, whole), jnp.asarray(full.astype(np.int32))
