"""Useful floating-point operations of a step, and their share of a machine's peak.

Only the matrix products that the task needs are counted, whatever the program does: no padding, and
nothing recomputed to save memory. Vision blocks count per patch of their picture, the decoder
per token of a row. Causal attention counts each token with those before it, a windowed block the
patches of a window. Norms, activations, rotations and the loss are left out; they are below 1 % at
the published sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from afmrl_jax.config import QwenVLConfig, Remat
from afmrl_jax.errors import RunError
from afmrl_jax.models.families import family

Trained = Literal["all", "decoder", "lora", "nothing"]
Counts = Sequence[int] | np.ndarray


def vision_flops(config: QwenVLConfig, patches: Counts) -> float:
    """One pass of the vision tower and its mergers over pictures with these patch counts."""
    vision = config.vision
    count = np.asarray(patches, np.float64)
    wide, merged = vision.embed_dim, vision.merge_size**2
    style = family(config.family).vision
    kernels = 4 * wide**2 + (3 if style.gated else 2) * wide * vision.intermediate
    seen = np.full_like(count, 0)
    windowed = vision.depth - len(vision.full_attention_blocks) if style.windows else 0
    window = (vision.window_size // vision.patch_size) ** 2
    seen = windowed * np.minimum(count, window) + (vision.depth - windowed) * count
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    joined = wide * merged
    mergers = 1 + len(vision.deep_blocks)
    ends = 2 * pixels * wide + mergers * 2 * joined * (joined + vision.out_dim) / merged
    return float(np.sum(count * (2 * vision.depth * kernels + ends) + 4 * wide * count * seen))


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
    """One pass through the adapters; 0 if the model has none."""
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
    width = sum(ends[x] for x in config.lora.targets)
    return 2.0 * tokens * text.num_layers * config.lora.rank * width


@dataclass(frozen=True)
class Passes:
    """Operations of one forward pass, by part of the model."""

    vision: float = 0.0
    decoder: float = 0.0
    adapters: float = 0.0
    head: float = 0.0

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
    def parts(self) -> tuple[float, float, float, float]:
        """Vision tower, decoder, adapters, head."""
        return self.vision, self.decoder, self.adapters, self.head

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
        tower = 3 if trained == "all" else 1
        rest = 2 if trained == "lora" else 3
        return tower * self.vision + rest * (self.decoder + self.head) + 3 * self.adapters

    def reinforcement(self, trained: Trained) -> float:
        """A step of RAR, if this is one pass over prompts and lists: sampling, scoring with the
        reference and the update. A frozen vision tower runs once for all three.
        """
        looks = 2 * self.vision if trained == "all" else 0.0
        return 2 * (self.forward - self.vision) + looks + self.step(trained)

    def executed(self, trained: Trained, remat: Remat) -> float:
        """A training step with what `remat` computes twice: of hardware, not model, utilization."""
        return self.step(trained) + self.recomputed(trained, remat)

    def recomputed(self, trained: Trained, remat: Remat) -> float:
        """What `remat` computes a second time; `dots` keeps all products, so nothing."""
        if trained == "nothing" or remat != "full":
            return 0.0
        return (self.vision if trained == "all" else 0.0) + self.decoder + self.adapters


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
