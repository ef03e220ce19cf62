"""Sizes of models: frozen dataclasses that reject invalid values when built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from afmrl_jax.config.lora import LoraConfig, LoraMap
from afmrl_jax.config.reads import Reads
from afmrl_jax.config.validation import Settings, require


def _require_positive(config: VisionConfig | TextConfig, part: str, but: tuple[str, ...]) -> None:
    """Refuse a size that is not above zero, in any field except `but`."""
    for name in (x.name for x in fields(config) if x.name not in but):
        value = getattr(config, name)
        require(value > 0, f"{part} {name} {value} must be positive")


@dataclass(frozen=True)
class VisionConfig(Settings):
    """The vision tower of a Qwen-VL."""

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
    position_side: int = 0
    """Side of the square table of learned positions, which is stretched over every picture; 0 for
    none."""
    deep_blocks: tuple[int, ...] = ()
    """Blocks whose outputs the decoder adds at the picture places, behind its first layers, one
    block a layer (DeepStack)."""

    def __post_init__(self) -> None:
        _require_positive(self, "vision", ("full_attention_blocks", "position_side", "deep_blocks"))
        require(self.position_side >= 0, f"position_side {self.position_side} is below 0")
        require(
            all(0 <= x < self.depth for x in self.deep_blocks)
            and list(self.deep_blocks) == sorted(set(self.deep_blocks)),
            f"deep_blocks {self.deep_blocks} must be blocks from 0 to {self.depth - 1}, ascending",
        )
        require(
            self.embed_dim % self.num_heads == 0,
            f"vision embed_dim {self.embed_dim} must divide by num_heads {self.num_heads}",
        )
        head_dim = self.embed_dim // self.num_heads
        require(head_dim % 4 == 0, f"vision head_dim {head_dim} must divide by 4 (2-D rotary)")
        require(
            all(0 <= block < self.depth for block in self.full_attention_blocks),
            f"full_attention_blocks name a block outside 0..{self.depth - 1}",
        )


@dataclass(frozen=True)
class TextConfig(Settings):
    """The causal decoder: RMSNorm, grouped-query attention, SwiGLU, M-RoPE."""

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
    head_size: int | None = None
    """Width of a head; None: `hidden_dim / num_heads`."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normed, head by head, before they are turned."""

    def __post_init__(self) -> None:
        others = ("mrope_section", "tie_embeddings", "head_size", "qkv_bias", "qk_norm")
        _require_positive(self, "text", others)
        require(self.head_size is None or self.head_size > 0, "text head_size must be positive")
        require(
            self.head_size is not None or self.hidden_dim % self.num_heads == 0,
            f"text hidden_dim {self.hidden_dim} must divide by num_heads {self.num_heads}",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"text num_heads {self.num_heads} must divide by num_kv_heads {self.num_kv_heads}",
        )
        require(min(self.mrope_section) > 0, f"mrope_section {self.mrope_section} must be positive")
        require(
            2 * sum(self.mrope_section) == self.head_dim,
            f"mrope_section {self.mrope_section} must sum to head_dim / 2 = {self.head_dim // 2}",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.hidden_dim // self.num_heads


@dataclass(frozen=True)
class InitConfig(Settings):
    """How random weights are drawn."""

    embedding: float = 0.02
    """Deviation of the token table; 0.02 is Qwen's."""
    residual: float = 1.0
    """Scale of the maps that end a residual branch, next to 1 / sqrt(fan-in)."""
    induction: bool = False
    """Whether the weights hold an induction head, so that the model copies from the start; not in
    families without biases on queries and keys, such as Qwen3-VL."""

    @classmethod
    def copying(cls) -> InitConfig:
        """A generator that copies words, as a pretrained one does.

        The scales keep the words from being drowned out by the random residual branches.
        """
        return cls(embedding=0.1, residual=0.1, induction=True)


Remat = Literal["none", "dots", "full"]
"""What a backward pass may recompute, see `Execution.remat`, from the fastest to the smallest."""


@dataclass(frozen=True)
class Execution(Settings):
    """How a model is computed: affects speed and memory, not the model."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; sums, norms and softmax are float32 in either."""
    scan: bool | None = None
    """Whether layers are compiled once and looped over. None: from 8 layers on. Not for the tokens
    that a generator writes, whose layers are always unrolled."""
    remat: Literal["none", "dots", "full", "auto"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers. auto:
    the first of these that fits the memory of the devices when a run begins, by the memory plan;
    outside of a run, whole layers."""
    attention: Literal["auto", "dense", "fused"] = "auto"
    """Fused is cuDNN's flash attention (GPU, bfloat16); auto uses it where it works."""

    @property
    def recomputes(self) -> Remat:
        """What `remat` means where no run has chosen for `auto`."""
        return "full" if self.remat == "auto" else self.remat

    def scans(self, layers: int) -> bool:
        """Whether a stack of this many layers is a loop."""
        return layers >= 8 if self.scan is None else self.scan


@dataclass(frozen=True)
class QwenVLConfig(Settings):
    """A Qwen2-VL (`qwen2_vl`), Qwen2.5-VL (`qwen2_5_vl`) or Qwen3-VL (`qwen3_vl`) model, or one of
    another family.
    """

    family: str
    """A name of `models.families`."""
    vision: VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    """Id of `<|image_pad|>`, whose positions the visual tokens take; the default is Qwen's."""
    lora: LoraConfig | None = None
    """Adapters on top of the weights; None for none."""
    lora_maps: tuple[LoraMap, ...] = ()
    """Linear maps whose adapters are of other ranks and alphas than `lora` says."""

    def __post_init__(self) -> None:
        require(
            self.vision.out_dim == self.text.hidden_dim,
            f"vision out_dim {self.vision.out_dim} must equal hidden_dim {self.text.hidden_dim}",
        )
        deep, layers = len(self.vision.deep_blocks), self.text.num_layers
        require(deep <= layers, f"{deep} deep_blocks need as many layers, and there are {layers}")


DEMO_WEIGHTS, RANDOM_WEIGHTS = "demo", "random"
"""Names that the setting `weights` knows; any other is a folder."""


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Where a model's weights come from, which of them are trained, and how it is computed."""

    weights: str | None = None
    """Folder of a Qwen-VL in Hugging Face's layout, or of a PEFT adapter. `demo`:
    the demo's small model, pretrained on the drawn marketplace. `random` or None: a small model
    with random weights."""
    family: str | None = None
    """Model family of random weights: qwen2_vl, qwen2_5_vl, or a registered one. None: qwen2_vl
    for the embedder, qwen2_5_vl for the generator. Given weights determine their own family."""
    trained: Literal["all", "decoder", "lora"] = "all"
    """What is trained: every weight, all but the vision tower, or adapters alone."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    frozen_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the frozen weights; trained ones are float32."""
    execution: Execution = field(default_factory=Execution)
    reads: Reads = field(default_factory=Reads)

    @property
    def starts_random(self) -> bool:
        """Whether no weights are named."""
        return self.weights in (None, RANDOM_WEIGHTS)
