"""Low-rank adapters: what a run asks for, and where those of a folder differ by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from afmrl_jax.config.validation import Settings, require

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a decoder layer that an adapter may change."""


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters (Hu et al., arXiv 2106.09685), as in VLM2Vec."""

    rank: int = 16
    alpha: float = 64.0
    """The product of the two factors is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
    """Linear maps of every decoder layer that get an adapter."""
    tower_targets: tuple[str, ...] = ()
    """Linear maps of the vision tower that get one, by their published names without the number of
    the block: attn.qkv, attn.proj, mlp.fc1, merger.mlp.0, ... By default the tower has none."""
    rank_stabilized: bool = False
    """rsLoRA (Kalajdzievski, arXiv 2312.03732): scale by alpha / sqrt(rank) instead."""
    dora: bool = False
    """DoRA (Liu et al., arXiv 2402.09353): an adapter changes the direction of a matrix's columns,
    and their lengths are learned by themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank > 0, "lora rank must be positive")
        require(self.alpha > 0, "lora alpha must be positive")
        unknown = sorted(set(self.targets) - set(LORA_TARGETS))
        require(not unknown, f"lora targets {unknown}: choose from {', '.join(LORA_TARGETS)}")
        require(
            bool(self.targets or self.tower_targets),
            f"lora targets (): choose from {', '.join(LORA_TARGETS)}, or name tower_targets",
        )

    @property
    def adapts_tower(self) -> bool:
        """Whether the vision tower has adapters."""
        return bool(self.tower_targets)

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return self.scale_of(self.rank, self.alpha)

    def scale_of(self, rank: int, alpha: float) -> float:
        """The same for an adapter of another rank or alpha."""
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True)
class LoraMap(Settings):
    """The adapters of one linear map, layer by layer: `peft`'s rank_pattern and alpha_pattern."""

    name: str
    """`model/layers/self_attn/q_proj`"""
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.ranks) == len(self.alphas) > 0,
            f"lora {self.name}: {len(self.ranks)} ranks for {len(self.alphas)} alphas",
        )
        require(min(self.ranks) > 0, f"lora {self.name}: ranks must be positive")
        require(min(self.alphas) > 0, f"lora {self.name}: alphas must be positive")
