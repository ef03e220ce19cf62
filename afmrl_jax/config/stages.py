"""Settings of the optimizer, distillation and evaluation, rejected when built if invalid."""

from __future__ import annotations

from dataclasses import dataclass, field

from afmrl_jax.config.validation import (
    MAX_COUNT,
    MAX_FACTOR,
    MAX_ROWS,
    MAX_STEPS,
    TINY,
    Settings,
    require,
)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """AdamW with linear warm-up and cosine decay to a tenth."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_share: float = 0.1
    """Fraction of the steps over which the rate rises."""
    final_share: float = 0.05
    """Learning rate at the last step, as a fraction of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what the stage
    leaves; the weights of the last steps scatter around it. It begins with the first step's
    weights, not with those before it, so short stages may use it too. 0 leaves the last step's
    weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(
            learning_rate=(TINY, MAX_FACTOR),
            final_share=(0, MAX_FACTOR),
            weight_decay=(0, MAX_FACTOR),
            clip_norm=(TINY, 1e12),
        )
        require(0 <= self.warmup_share < 1, "warmup_share must lie in [0, 1)")
        require(0 <= self.ema_decay < 1, "ema_decay must lie in [0, 1)")


@dataclass(frozen=True)
class DistillConfig(Settings):
    """Supervised distillation of the generator from the oracle's attribute lists."""

    steps: int = 800
    batch_size: int = 32
    """Listings per step, in pairs of the same product where it has two listings."""
    swap_share: float = 0.5
    """Fraction of rows in which the words shared by title and list are replaced, in both, by words
    of other titles. Otherwise a generator with random weights memorizes the words of its few lists
    and never copies one it has not seen. Use 0 for a pretrained generator."""
    contrastive_weight: float = 0.3
    """Weight of an InfoNCE term on the prompt's last hidden state, which makes a generator with
    random weights use the pictures early. Use 0 for a pretrained generator."""
    structure_weight: float = 0.2
    """Weight in the cross entropy of tokens that are not part of a value (keys, punctuation, end).
    The oracle orders keys arbitrarily, and that noise would drown out the values."""
    title_dropout: float = 0.0
    """Probability that a row has no title, so that the generator can write for a lone picture."""
    picture_dropout: float = 0.0
    """Probability that a row has no picture, so that the generator can write for a lone title."""
    logits_at_once: int | None = None
    """Tokens of each row whose vocabulary logits are held in memory at once. None holds all of
    them, which is fastest for a small vocabulary; a large one needs a limit."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(2e-3, warmup_share=0.03, weight_decay=0.5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(
            steps=(1, MAX_STEPS),
            batch_size=(2, MAX_ROWS),
            swap_share=(0, 1),
            contrastive_weight=(0, MAX_FACTOR),
            structure_weight=(TINY, MAX_FACTOR),
            logits_at_once=(1, MAX_COUNT),
            title_dropout=(0, 1),
            picture_dropout=(0, 1),
        )
        require(
            self.title_dropout + self.picture_dropout < 1,
            "title_dropout and picture_dropout must add up to less than 1: some rows need both",
        )


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """What the evaluation does with the frozen models."""

    batch_size: int = 128
    bootstrap: int = 2000
    """Bootstrap resamples for each 95 % interval."""
    latency: bool = True
    """Measure how long encoding and searching take."""
    gallery_queries: int = 12
    """Queries shown in the report's gallery."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(batch_size=(1, MAX_ROWS), bootstrap=(1, MAX_ROWS), gallery_queries=(0, 10_000))
