"""Settings of reinforcement and of the cycles behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from afmrl_jax.config.stages import OptimizerConfig
from afmrl_jax.config.validation import require


@dataclass(frozen=True)
class RarConfig:
    """Retrieval-aware reinforcement of G by GRPO against the frozen R."""

    steps: int = 30
    queries: int = 32
    """Query listings a step (groups)."""
    group_size: int = 8
    """Attribute lists sampled per query."""
    reward: str = "recall"
    """recall, reciprocal_rank, ndcg, margin, length_aware, or your own as package.module:function,
    which takes an `objectives.rewards.Outcome` and returns a number for each list, or which is an
    `objectives.rewards.Reward` and also says what it needs computed."""
    length_price: float = 0.1
    """What the reward length_aware takes off for a list that fills its budget."""
    k: int | None = None
    """k of Recall@k. None: the k whose starting reward lies nearest one half."""
    margin_negatives: int = 3
    """Hardest negatives averaged by the margin reward."""
    malformed_reward: float = -0.1
    temperature: float = 0.7
    """Of the samples. At 1 a quarter of a small G's samples are malformed, RAR learns to write less
    rather than better, and lists shrink to one key."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no cut."""
    constrained: bool = False
    """Sample only lists that keep to the grammar and to the keys the distilled G wrote. The
    log-probabilities stay those of free sampling."""
    baseline: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """Advantage: less the group's mean and over its deviation, less the mean alone, or less the
    mean of the others."""
    normalization: Literal["sample", "token", "constant"] = "sample"
    """Whether samples count alike, or tokens (DAPO), or tokens over the budget (Dr. GRPO)."""
    drop_dead_groups: bool = False
    """Leave groups without any advantage out of the mean, and not only without a gradient."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    """Above `clip_low` it is DAPO's clip-higher."""
    ratio_cap: float | None = None
    """Most that a ratio counts for where the clip does not bind; None: no cap."""
    importance: Literal["token", "sequence"] = "token"
    """A ratio for each token, or one for the sample (GSPO)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the KL divergence from the distilled G."""
    kl_coefficient: float = 0.05
    """Weight of the KL divergence from the distilled G; at 0.01 lists shrink to two keys."""
    chunk_tokens: int | None = None
    """Tokens of prompts and lists in an update at a time, on all devices together. None: all."""
    updates_per_rollout: int = 1
    """Optimizer steps on the same samples; from the second on the clipped ratio matters."""
    held_out_share: float = 0.3
    """Share of the reward families kept for judging RAR; never trained on."""
    evaluate_every: int = 10
    evaluation_samples: int = 4
    """Samples per held-out query, with the same keys at every evaluation."""
    patience: int | None = None
    """Evaluations without a better held-out reward after which the stage ends. None: never."""
    samples_every: int = 10
    """Steps between a few sampled lists in samples.jsonl."""
    gallery_splits: tuple[str, ...] = ("reward", "train")
    gallery_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the gallery's vectors; bfloat16 halves their memory, and near ties may fall otherwise."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(2e-4, warmup_share=0.05, final_share=1.0)
    )

    def __post_init__(self) -> None:
        require(self.steps > 0, "rar needs steps > 0")
        require(self.group_size > 1, "a group needs at least two samples")
        require(self.temperature > 0, "rar samples; temperature must be positive")
        require(self.k is None or self.k > 0, "k must be positive")
        require(self.samples_every > 0, "samples_every must be positive")
        require(self.margin_negatives > 0, "margin_negatives must be positive")
        require(0 <= self.length_price < 1, "length_price must lie in [0, 1)")
        require(self.ratio_cap is None or self.ratio_cap > 1, "ratio_cap must exceed 1")
        require(self.chunk_tokens is None or self.chunk_tokens > 0, "chunk_tokens must be positive")
        require(self.patience is None or self.patience > 0, "patience must be positive")
        require(0 < self.held_out_share < 1, "held_out_share must lie in (0, 1)")
        require("reward" in self.gallery_splits, "the gallery must hold the reward split")


@dataclass(frozen=True)
class CitConfig:
    """Cyclic training: the reinforced G re-annotates a share and R trains on."""

    cycles: int = 1
    """Every cycle trains on from the last, and is a row of the results."""
    share: float = 0.3
    """Share of the training listings that take the reinforced G's attributes in a cycle, a further
    one in each."""
    choice: Literal["random", "difference"] = "difference"
    """Which listings: those whose attributes changed most, for which all are annotated, or drawn at
    random as in the paper."""
    steps: int = 20
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        require(self.cycles >= 0, "cycles must not be negative")
        require(0 < self.share <= 1, "share must lie in (0, 1]")
