"""Useful floating-point operations of a step, and their share of a machine's peak.

Only the matrix products that the task needs are counted, whatever the program does: no padding, and
nothing recomputed to save memory. Vision blocks count per patch of their picture, the decoder
per token of a row. Causal attention counts each token with those before it, a windowed block the
patches of a window. Norms (those of DoRA's columns among them), activations, rotations and the
loss are left out; they are below 1 % at the published sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from afmrl_jax.config import QwenVLConfig, Remat
from afmrl_jax.errors import RunError
from afmrl_jax.models.families import family
from afmrl_jax.models.qwen_vl.adapters import Adapters, tower_path

Trained = Literal["all", "decoder", "lora", "nothing"]
Counts = Sequence[int] | np.ndarray


def vision_flops(config: QwenVLConfig, patches: Counts) -> float:
    """One pass of the vision tower and its mergers over pictures with these patch counts."""
    vision = config.vision
    count = np.asarray(patches, np.float64)
    wide = vision.embed_dim
    style = family(config.family).vision
    kernels = 4 * wide**2 + (3 if style.gated else 2) * wide * vision.intermediate
    seen = np.full_like(count, 0)
    windowed = vision.depth - len(vision.full_attention_blocks) if style.windows else 0
    window = (vision.window_size // vision.patch_size) ** 2
    seen = windowed * np.minimum(count, window) + (vision.depth - windowed) * count
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    start = 2 * pixels * wide
    blocks = np.sum(count * (2 * vision.depth * kernels + start) + 4 * wide * count * seen)
    return float(blocks) + merger_flops(config, patches) + deepstack_flops(config, patches)


def merger_flops(config: QwenVLConfig, patches: Counts) -> float:
    """One pass of a merger over pictures with these patch counts."""
    vision = config.vision
    joined = vision.embed_dim * vision.merge_size**2
    tokens = float(np.sum(patches)) / vision.merge_size**2
    return tokens * 2 * joined * (joined + vision.out_dim)


def deepstack_flops(config: QwenVLConfig, patches: Counts) -> float:
    """One pass of the further mergers whose outputs the decoder adds behind its first layers; the
    additions are left out.
    """
    return len(config.vision.deep_blocks) * merger_flops(config, patches)


def decoder_flops(config: QwenVLConfig, lengths: Counts, behind: Counts = (0,)) -> float:
    """One pass of the decoder over rows of these lengths, without head and adapters.

    Args:
        config: of the model.
        lengths: tokens of each row.
        behind: tokens before each row that are only attended to, such as a shared prompt.
    """
    text = config.text
    tokens, before = np.broadcast_arrays(
        np.asarray(lengths, np.float64), np.asarray(behind, np.float64)
    )
    inner, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    kernels = text.hidden_dim * (2 * inner + 2 * narrow + 3 * text.intermediate_dim)
    pairs = tokens * before + tokens * (tokens + 1) / 2
    return float(np.sum(text.num_layers * (2 * tokens * kernels + 4 * inner * pairs)))


def head_flops(config: QwenVLConfig, tokens: int) -> float:
    """Vocabulary logits of this many tokens."""
    return 2.0 * tokens * config.text.hidden_dim * config.text.vocab_size


def adapter_flops(config: QwenVLConfig, tokens: int) -> float:
    """One pass through the decoder's adapters; 0 if it has none."""
    if config.lora is None:
        return 0.0
    text = config.text
    inner, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    ends = {
        "q_proj": text.hidden_dim + inner,
        "k_proj": text.hidden_dim + narrow,
        "v_proj": text.hidden_dim + narrow,
        "o_proj": inner + text.hidden_dim,
        "gate_proj": text.hidden_dim + text.intermediate_dim,
        "up_proj": text.hidden_dim + text.intermediate_dim,
        "down_proj": text.intermediate_dim + text.hidden_dim,
    }
    parts = {x: "mlp" if x in ("gate_proj", "up_proj", "down_proj") else "self_attn" for x in ends}
    paths = {x: f"model/layers/{parts[x]}/{x}" for x in config.lora.targets}
    width = sum(ends[x] * _ranks(config, path, text.num_layers) for x, path in paths.items())
    return 2.0 * tokens * width


def tower_adapter_flops(config: QwenVLConfig, patches: Counts) -> float:
    """One pass through the vision tower's adapters over pictures with these patch counts."""
    if config.lora is None:
        return 0.0
    vision = config.vision
    wide, merged = vision.embed_dim, vision.merge_size**2
    joined, hidden = wide * merged, wide + vision.intermediate
    stacks = {"blocks": vision.depth, "deepstack_merger_list": len(vision.deep_blocks)}
    # Inputs and outputs together; a merger's for each patch.
    merger = dict.fromkeys(("mlp_0", "linear_fc1"), 2 * joined / merged)
    merger |= dict.fromkeys(("mlp_2", "linear_fc2"), (joined + vision.out_dim) / merged)
    width = 0.0
    for path in map(tower_path, config.lora.tower_targets):
        stack, part, name = path.split("/")[1], *path.rsplit("/", 2)[-2:]
        ends = {"attn": {"qkv": 4 * wide, "proj": 2 * wide}, "mlp": {}}.get(part, merger)
        width += ends.get(name, hidden) * _ranks(config, path, stacks.get(stack, 1))
    return 2.0 * float(np.sum(patches)) * width


def _ranks(config: QwenVLConfig, path: str, layers: int) -> int:
    """Sum of the ranks of a map's adapters over the layers."""
    found = Adapters.of(config)(path)
    if found is None:
        return 0
    return sum(found.ranks) if len(found.ranks) > 1 else layers * found.rank


@dataclass(frozen=True)
class Passes:
    """Operations of one forward pass, by part of the model."""

    vision: float = 0.0
    decoder: float = 0.0
    adapters: float = 0.0
    """Of the decoder."""
    head: float = 0.0
    tower_adapters: float = 0.0

    @classmethod
    def over(
        cls, config: QwenVLConfig, patches: Counts, lengths: Counts, scored: int = 0
    ) -> Passes:
        """Patches of each picture, tokens of each row, and how many tokens get logits."""
        return cls(
            vision_flops(config, patches),
            decoder_flops(config, lengths),
            adapter_flops(config, int(np.sum(lengths))),
            head_flops(config, scored),
            tower_adapter_flops(config, patches),
        )

    @classmethod
    def behind(cls, config: QwenVLConfig, lengths: Counts, group: int, new: float) -> Passes:
        """A group of lists of `new` tokens behind each prompt of these lengths, without adapters.

        A group shares its prompt, which is counted by `over`.
        """
        written = np.full(len(lengths), new)
        return cls(
            decoder=group * decoder_flops(config, written, lengths),
            head=head_flops(config, int(len(lengths) * group * new)),
        )

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[float, float, float, float, float]:
        """Vision tower, decoder, its adapters, head, the tower's adapters."""
        return self.vision, self.decoder, self.adapters, self.head, self.tower_adapters

    def _through_tower(self, trained: Trained) -> bool:
        """Whether gradients flow into the vision tower."""
        return trained == "all" or (trained == "lora" and self.tower_adapters > 0)

    @property
    def forward(self) -> float:
        """The whole pass."""
        return sum(self.parts)

    def step(self, trained: Trained) -> float:
        """A training step: forward, and backward as far as gradients are needed.

        A product whose weights learn costs three passes (outputs, gradient of inputs, gradient of
        weights), one with frozen weights whose inputs carry gradients costs two, any other one.
        """
        if trained == "nothing":
            return self.forward
        rest = 2 if trained == "lora" else 3
        tower = self.vision + self.tower_adapters
        if self._through_tower(trained):
            tower = rest * self.vision + 3 * self.tower_adapters
        return tower + rest * (self.decoder + self.head) + 3 * self.adapters

    def reinforcement(self, trained: Trained) -> float:
        """A step of RAR, if this is one pass over prompts and lists: sampling, scoring with the
        reference and the update. A frozen vision tower runs once for all three.
        """
        tower = self.vision + self.tower_adapters
        looks = 2 * tower if self._through_tower(trained) else 0.0
        return 2 * (self.forward - tower) + looks + self.step(trained)

    def executed(self, trained: Trained, remat: Remat) -> float:
        """A training step with what `remat` computes twice: of hardware, not model, utilization."""
        return self.step(trained) + self.recomputed(trained, remat)

    def recomputed(self, trained: Trained, remat: Remat) -> float:
        """What `remat` computes a second time; `dots` keeps all products, so nothing."""
        if trained == "nothing" or remat != "full":
            return 0.0
        tower = self.vision + self.tower_adapters if self._through_tower(trained) else 0.0
        return tower + self.decoder + self.adapters


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation: operations a second as a share of the peak (PaLM, 2204.02311).

    Args:
        flops: useful operations.
        seconds: that they took.
        peak: FLOP/s of all devices together.

    Raises:
        RunError: the share exceeds 1, so one of the three is wrong.
    """
    share = flops / seconds / peak
    if share > 1:
        raise RunError(
            f"{flops / seconds / 1e12:.3g} TFLOP/s are more than the peak of {peak / 1e12:.3g}; "
            "the peak is another machine's, or was measured while other work ran: measure again"
        )
    return share
