"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches in, merged visual tokens out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from afmrl_jax.config import Execution, QwenVLConfig, VisionConfig
from afmrl_jax.config.validation import require
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.qwen_vl.adapters import Adapters
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend
from afmrl_jax.models.qwen_vl.layers import Keys, Linear, run_stack, stack_layers, unstack
from afmrl_jax.models.qwen_vl.rope import Turn, rotate, vision_angles
from afmrl_jax.models.qwen_vl.tower_parts import VisionStyle, stretched_positions
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


LESS_IN_WINDOWS = 4
"""How many times fewer pairs windows must have as rows than a mask, because rows are copied."""


class VisionAttention(nnx.Module):
    """Self-attention over patches with 2-D rotary positions."""

    def __init__(
        self, config: VisionConfig, adapters: Adapters, execution: Execution, *, keys: Keys
    ):
        size = config.embed_dim
        self.qkv = Linear(size, 3 * size, bias=True, adapter=adapters("qkv"), keys=keys)
        self.proj = Linear(size, size, bias=True, adapter=adapters("proj"), keys=keys)
        self.num_heads = config.num_heads
        self.implementation = execution.attention

    def __call__(
        self,
        x: Float[Array, "n p d"],
        turn: Turn,
        views: tuple[View, ...],
        number: Int[Array, ""] | None = None,
    ) -> Float[Array, "n p d"]:
        """Patches with their rotary turn; `number` says which of the views is looked through."""
        batch, patches, size = x.shape
        qkv = self.qkv(x).reshape(batch, patches, 3, self.num_heads, size // self.num_heads)
        q, k = rotate(qkv[:, :, 0], turn), rotate(qkv[:, :, 1], turn)
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


class VisionBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        vision: VisionConfig,
        style: VisionStyle,
        adapters: Adapters,
        execution: Execution,
        *,
        keys: Keys,
    ):
        size, eps = vision.embed_dim, vision.rms_norm_eps
        self.norm1 = style.norm(size, eps)
        self.norm2 = style.norm(size, eps)
        self.mlp = style.mlp(vision, adapters.below("mlp"), keys)
        self.attn = VisionAttention(vision, adapters.below("attn"), execution, keys=keys)

    def __call__(
        self,
        x: Float[Array, "n p d"],
        turn: Turn,
        views: tuple[View, ...],
        number: Int[Array, ""] | None = None,
    ) -> Float[Array, "n p d"]:
        """As in `VisionAttention`."""
        x = rows_over_data(x)
        x = rows_over_data(x + self.attn(self.norm1(x), turn, views, number))
        return rows_over_data(x + self.mlp(self.norm2(x)))


class PatchEmbed(nnx.Module):
    """Flattened patches to vectors: a convolution whose stride is its size."""

    def __init__(self, config: VisionConfig, *, bias: bool, keys: Keys):
        inputs = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.proj = Linear(inputs, config.embed_dim, bias=bias, keys=keys)

    def __call__(self, patches: Float[AnyArray, "n p f"]) -> Float[Array, "n p d"]:
        """Of each patch by itself."""
        return self.proj(jnp.asarray(patches))


class VisionTower(nnx.Module):
    """Patch embedding, blocks and merger.

    Within Qwen2.5-VL's windows, attention is computed with windows as rows, see `Windows`, unless
    bins are so small that a mask costs less. The reference permutes patches once and undoes it
    after the merger; the numbers are the same.
    """

    def __init__(
        self,
        config: QwenVLConfig,
        style: VisionStyle,
        execution: Execution,
        *,
        adapters: Adapters,
        keys: Keys,
    ):
        vision = config.vision
        unit = vision.patch_size * vision.merge_size
        require(
            not style.windows or vision.window_size % unit == 0,
            f"window_size must be a multiple of {unit} pixels",
        )
        self.patch_embed = PatchEmbed(vision, bias=style.patch_bias, keys=keys)
        self.blocks = stack_layers(
            vision.depth,
            lambda: VisionBlock(vision, style, adapters.below("blocks"), execution, keys=keys),
            keys,
        )
        self.merger = style.merger(vision, style.norm, adapters.below("merger"), keys=keys)
        places, count = (vision.position_side**2, vision.embed_dim), len(vision.deep_blocks)

        def table() -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(keys.draw(), places, jnp.float32))

        self.pos_embed = table() if vision.position_side else None

        def deep_merger() -> nnx.Module:
            own = adapters.below("deepstack_merger_list")
            return style.merger(vision, style.norm, own, keys=keys, deep=True)

        self.deepstack_merger_list = stack_layers(count, deep_merger, keys) if count else None
        self.config = config
        self.windows = style.windows
        self.execution = execution

    def __call__(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
    ) -> VisualFeatures:
        """Merged tokens [n s d], s = p / merge_size^2, of patches in merge-block order.

        Args:
            patches: flattened normalised pixels; several pictures may share a bin n.
            segment: number of the picture inside the bin, from 1; 0 is padding.
            position: (row, column) in patches.
        """
        x, deep, _ = self._through(patches, segment, position, lambda out: None)
        mergers = self.deepstack_merger_list
        if mergers is None:
            return VisualFeatures(self.merger(x))
        graphdef, state = nnx.split(mergers)
        parts = unstack(state, len(deep))
        found = (nnx.merge(graphdef, own)(y) for own, y in zip(parts, deep, strict=True))
        return VisualFeatures(self.merger(x), tuple(found))

    def block_outputs(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
    ) -> Float[Array, "l n p d"]:
        """What each block hands on; for looking inside."""
        return self._through(patches, segment, position, lambda out: out)[2]

    def _through(
        self,
        patches: Float[AnyArray, "n p f"],
        segment: Int[AnyArray, "n p"],
        position: Int[AnyArray, "n p 2"],
        keep: Callable[[jax.Array], PyTree],
    ) -> tuple[Float[Array, "n p d"], tuple[Float[Array, "n p d"], ...], PyTree]:
        """What the last block hands on, what the deep ones do, and what is kept of every one."""
        vision = self.config.vision
        turn = Turn.by(vision_angles(position, vision.embed_dim // vision.num_heads))
        views, numbers = self._views(segment, position)
        count = len(vision.deep_blocks)
        # Where each block's output is put; all but the deep ones' at a place that nobody reads.
        places = np.full(vision.depth, count, np.int32)
        places[list(vision.deep_blocks)] = np.arange(count)

        def step(
            block: VisionBlock,
            carry: tuple[jax.Array, jax.Array | None],
            extra: tuple[jax.Array | None, jax.Array | None],
        ) -> tuple[tuple[jax.Array, jax.Array | None], PyTree]:
            x, deep = carry
            x = block(x, turn, views, extra[0])
            if deep is not None:
                assert extra[1] is not None
                deep = jax.lax.dynamic_update_index_in_dim(deep, x, extra[1], 0)
            return (x, deep), keep(x)

        x = self.patch_embed(patches.astype(self.execution.dtype))
        if self.pos_embed is not None:
            side = vision.position_side
            learned = stretched_positions(self.pos_embed[...], side, segment, position)
            x = x + learned.astype(x.dtype)
        start = jnp.zeros((count + 1, *x.shape), x.dtype) if count else None
        extras = (numbers, jnp.asarray(places) if count else None)
        (x, deep), kept = run_stack(self.blocks, step, (x, start), extras, self.execution)
        return x, () if deep is None else tuple(deep[n] for n in range(count)), kept

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
