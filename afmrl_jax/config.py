"""Every setting of the system, as frozen dataclasses that refuse nonsense when they are built.

`tyro` turns them into command lines, so a field's docstring below is also its `--help` text.
Model sizes are classmethods; a run's settings are `RunConfig`, with `RunConfig.demo()` and
`RunConfig.fast()` as the shipped ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from afmrl_jax.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes patches; the defaults of the field names follow Qwen2-VL."""

    patch_size: int = 8
    """Side of a patch in pixels."""
    merge_size: int = 2
    """Patches per side that the merger joins into one visual token."""
    temporal_patch_size: int = 1
    """Frames per patch; a still picture is repeated to fill it."""
    min_pixels: int = 32 * 32
    """Pictures with fewer pixels are enlarged to this many."""
    max_pixels: int = 64 * 64
    """Pictures with more pixels are reduced to this many."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the three colour channels, subtracted."""
    std: tuple[float, float, float] = CLIP_STD
    """Deviation of the three colour channels, divided by."""

    def __post_init__(self) -> None:
        factor = self.patch_size * self.merge_size
        _require(self.min_pixels <= self.max_pixels, "min_pixels must not exceed max_pixels")
        _require(
            self.max_pixels >= factor * factor,
            f"max_pixels {self.max_pixels} holds no merged patch of {factor} x {factor} pixels",
        )

    @property
    def max_patches(self) -> int:
        """Patches a row has room for."""
        unit = self.merge_size**2
        return max(unit, self.max_pixels // self.patch_size**2 // unit * unit)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower of Qwen2-VL or Qwen2.5-VL."""

    depth: int
    embed_dim: int
    num_heads: int
    intermediate: int
    out_dim: int
    patch_size: int = 8
    merge_size: int = 2
    temporal_patch_size: int = 1
    window_size: int = 32
    full_attention_blocks: tuple[int, ...] = ()
    in_channels: int = 3
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require(self.embed_dim % self.num_heads == 0, "vision embed_dim must divide by num_heads")
        head_dim = self.embed_dim // self.num_heads
        _require(head_dim % 4 == 0, f"vision head_dim {head_dim} must divide by 4 (2-D rotary)")
        unit = self.patch_size * self.merge_size
        _require(self.window_size % unit == 0, f"window_size must be a multiple of {unit} pixels")
        _require(
            all(0 <= block < self.depth for block in self.full_attention_blocks),
            f"full_attention_blocks name a block outside 0..{self.depth - 1}",
        )


@dataclass(frozen=True)
class TextConfig:
    """The causal decoder: RMSNorm, grouped-query attention with QKV bias, SwiGLU, M-RoPE."""

    vocab_size: int
    hidden_dim: int
    intermediate_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        _require(self.hidden_dim % self.num_heads == 0, "hidden_dim must divide by num_heads")
        _require(self.num_heads % self.num_kv_heads == 0, "num_heads must divide by num_kv_heads")
        _require(
            2 * sum(self.mrope_section) == self.head_dim,
            f"mrope_section {self.mrope_section} must sum to head_dim / 2 = {self.head_dim // 2}",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_dim // self.num_heads


@dataclass(frozen=True)
class QwenVLConfig:
    """A Qwen2-VL (`qwen2_vl`) or Qwen2.5-VL (`qwen2_5_vl`) model."""

    family: Literal["qwen2_vl", "qwen2_5_vl"]
    vision: VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    """Id of `<|image_pad|>`, whose positions the visual tokens take; the default is Qwen's."""

    def __post_init__(self) -> None:
        _require(
            self.vision.out_dim == self.text.hidden_dim,
            f"vision out_dim {self.vision.out_dim} must equal hidden_dim {self.text.hidden_dim}",
        )

    @classmethod
    def demo(
        cls, family: Literal["qwen2_vl", "qwen2_5_vl"], vocab_size: int, image_token_id: int
    ) -> QwenVLConfig:
        """About 0.7 M parameters: what two CPU cores train from nothing in minutes."""
        vision = VisionConfig(
            depth=2,
            embed_dim=64,
            num_heads=4,
            intermediate=192,
            out_dim=96,
            full_attention_blocks=(1,) if family == "qwen2_5_vl" else (),
        )
        text = TextConfig(
            vocab_size=vocab_size,
            hidden_dim=96,
            intermediate_dim=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            mrope_section=(4, 4, 4),
        )
        return cls(family, vision, text, image_token_id)


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to a tenth."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_share: float = 0.1
    """Share of the steps over which the rate rises."""
    final_share: float = 0.05
    """Learning rate at the last step, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate must be positive")
        _require(0 <= self.warmup_share < 1, "warmup_share must lie in [0, 1)")


@dataclass(frozen=True)
class TextBudget:
    """Fixed sequence shapes: a batch takes the smallest bucket its longest row fits."""

    buckets: tuple[int, ...] = (48, 64, 80, 112)
    """Sequence lengths, visual tokens included, ascending."""
    max_title_tokens: int = 40
    """Titles are cut to this many tokens."""
    max_attribute_tokens: int = 48
    """Attribute text is cut to this many tokens, and G may write no more."""
    max_terms: int = 32
    """BM25 terms kept per attribute text."""

    def __post_init__(self) -> None:
        _require(
            len(self.buckets) > 0 and list(self.buckets) == sorted(set(self.buckets)),
            f"buckets {self.buckets} must ascend",
        )


@dataclass(frozen=True)
class DistillConfig:
    """Supervised distillation of the generator G from the oracle's attribute lists."""

    steps: int = 500
    batch_size: int = 64
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(2e-3))

    def __post_init__(self) -> None:
        _require(self.steps > 0 and self.batch_size > 0, "distill needs steps and batch_size > 0")


@dataclass(frozen=True)
class AgclConfig:
    """Contrastive training of the embedder R. `gamma=0` and no masks make it InfoNCE."""

    steps: int = 200
    batch_size: int = 64
    """Query/candidate pairs a step; every product occurs once in a batch."""
    sibling_share: float = 0.5
    """Share of the batch drawn as family siblings (near-twin products)."""
    temperature: float = 0.05
    gamma: float = 0.1
    """Scale of BM25 inside w = exp(1 + tanh(gamma B)); the paper has 1, which saturates."""
    delta: float | None = 0.1
    """Margin of the false-negative mask: s_ij > s_ii + delta leaves. None: off."""
    agreement_rho: float | None = None
    """Attribute agreement: B_ij >= rho B_ii and s_ij > s_ii - epsilon leaves. None: off."""
    agreement_epsilon: float = 0.1
    symmetric: bool = True
    """Also contrast each candidate with all queries."""
    attribute_dropout: float = 0.3
    """Each attribute of the input is dropped with this chance: R must know short lists."""
    no_attributes: float = 0.1
    """Share of rows that see no attribute at all."""
    title_dropout: float = 0.1
    """Share of rows without a title, so that pictures alone can be searched."""
    image_dropout: float = 0.1
    """Share of rows without a picture, so that text alone can be searched."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        _require(self.steps > 0, "agcl needs steps > 0")
        _require(self.batch_size > 1, "a contrastive batch needs at least two products")
        _require(self.temperature > 0, "temperature must be positive")
        _require(0 <= self.sibling_share <= 1, "sibling_share must lie in [0, 1]")
        for name in ("attribute_dropout", "no_attributes", "title_dropout", "image_dropout"):
            _require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1)")
        _require(
            self.title_dropout + self.image_dropout < 1, "title and image dropout leave nothing"
        )

    def infonce(self) -> AgclConfig:
        """The same training without weights and without a learned mask."""
        return dataclasses.replace(self, gamma=0.0, delta=None, agreement_rho=None)


@dataclass(frozen=True)
class RarConfig:
    """Retrieval-aware reinforcement of G by GRPO against the frozen R."""

    steps: int = 60
    queries: int = 32
    """Query listings a step (groups)."""
    group_size: int = 8
    """Attribute lists sampled per query."""
    reward: Literal["recall", "reciprocal_rank", "margin"] = "recall"
    k: int | None = None
    """k of Recall@k. None: the k whose starting reward lies nearest one half."""
    margin_negatives: int = 3
    """Hardest negatives averaged by the margin reward."""
    malformed_reward: float = -0.1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: no cut."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.01
    updates_per_rollout: int = 1
    """Optimiser steps on the same samples; from the second on the clipped ratio matters."""
    held_out_share: float = 0.3
    """Share of the reward families kept for judging RAR; never trained on."""
    evaluate_every: int = 20
    evaluation_samples: int = 4
    """Samples per held-out query, with the same keys at every evaluation."""
    gallery_splits: tuple[str, ...] = ("reward", "train")
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(2e-4, warmup_share=0.05, final_share=1.0)
    )

    def __post_init__(self) -> None:
        _require(self.steps > 0, "rar needs steps > 0")
        _require(self.group_size > 1, "a group needs at least two samples")
        _require(self.temperature > 0, "rar samples; temperature must be positive")
        _require(self.k is None or self.k > 0, "k must be positive")
        _require(0 < self.held_out_share < 1, "held_out_share must lie in (0, 1)")
        _require("reward" in self.gallery_splits, "the gallery must hold the reward split")


@dataclass(frozen=True)
class CitConfig:
    """Cyclic training: the reinforced G re-annotates a share and R trains on."""

    cycles: int = 1
    share: float = 0.3
    """Share of the training listings that the reinforced G annotates again."""
    steps: int = 80
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        _require(self.cycles >= 0, "cycles must not be negative")
        _require(0 < self.share <= 1, "share must lie in (0, 1]")


@dataclass(frozen=True)
class OracleConfig:
    """How often the oracle from which G is distilled departs from the true attributes."""

    synonym_rate: float = 0.3
    """Chance that a value is written as a synonym."""
    omit_rate: float = 0.25
    """Chance that a key is left out."""
    generic_rate: float = 0.25
    """Chance that a listing gets a filler such as `style: beautiful`."""
    wrong_rate: float = 0.05
    """Chance that a value is another product's."""
    shuffle: bool = True
    """Write the keys in an order that differs from listing to listing."""

    def __post_init__(self) -> None:
        for name in ("synonym_rate", "omit_rate", "generic_rate", "wrong_rate"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1]")


@dataclass(frozen=True)
class EvaluationConfig:
    """What the evaluation does with the frozen models."""

    batch_size: int = 128
    bootstrap: int = 2000
    """Resamples behind every 95 % interval."""
    gallery_queries: int = 12
    """Queries shown in the report's gallery."""


@dataclass(frozen=True)
class RunConfig:
    """One run of the whole method, stage by stage."""

    catalogue: str = "furniture"
    """`furniture` (embedded) or a folder in the catalogue format."""
    seed: int = 0
    vocab_size: int = 2048
    """Entries of the byte-level BPE trained on the catalogue."""
    skip_bad: bool = False
    """Leave unusable records out, counted and listed, instead of stopping."""
    save_every: int = 50
    """Steps between checkpoints."""
    workers: int = 0
    """Grain worker processes; 0 reads in threads of this process."""
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextBudget = field(default_factory=TextBudget)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    agcl: AgclConfig = field(default_factory=AgclConfig)
    rar: RarConfig = field(default_factory=RarConfig)
    cit: CitConfig = field(default_factory=CitConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 264, "vocab_size must hold 256 bytes and the special tokens")
        _require(self.save_every > 0, "save_every must be positive")

    @classmethod
    def demo(cls) -> RunConfig:
        """The main job: minutes on two cores."""
        return cls()

    @classmethod
    def fast(cls) -> RunConfig:
        """Every stage of the demo with few steps: a smoke test, not a result."""
        demo = cls()
        replace = dataclasses.replace
        return replace(
            demo,
            distill=replace(demo.distill, steps=40),
            agcl=replace(demo.agcl, steps=20),
            rar=replace(demo.rar, steps=4, queries=16, group_size=4, evaluate_every=2),
            cit=replace(demo.cit, steps=8),
            evaluation=replace(demo.evaluation, bootstrap=200),
            save_every=20,
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fingerprint(value: Any) -> str:
    """A short stable hash of a config or of plain JSON values."""
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
