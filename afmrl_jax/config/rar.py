"""Settings of reinforcement and of the cycles after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from afmrl_jax.config.stages import OptimizerConfig
from afmrl_jax.config.validation import (
    MAX_COUNT,
    MAX_FACTOR,
    MAX_ROWS,
    MAX_STEPS,
    TINY,
    Settings,
    require,
)

MAX_CYCLES = 1000
"""Most cycles; each is a stage and a row of the results."""


@dataclass(frozen=True)
class RarConfig(Settings):
    """Retrieval-aware reinforcement: GRPO on the generator, rewarded by the frozen embedder."""

    steps: int = 30
    queries: int = 32
    """Query listings (groups) per step."""
    group_size: int = 8
    """Attribute lists sampled per query."""
    reward: str = "recall"
    """recall, reciprocal_rank, ndcg, whole_ndcg, margin, length_aware, or your own as
    package.module:function, which takes an `objectives.rewards.Outcome` and returns a number for
    each list, or which is an `objectives.rewards.Reward` and also says what it needs computed."""
    length_price: float = 0.1
    """What the reward length_aware subtracts for a list that fills its budget."""
    k: int | None = None
    """k of Recall@k. None chooses the k whose starting reward is nearest to one half."""
    margin_negatives: int = 3
    """Hardest negatives averaged by the margin reward."""
    malformed_reward: float = -0.1
    permute_rewards: bool = False
    """A placebo: the rewards of each group's well-formed lists go to them in random order. What is
    gained with it is not due to retrieval. The log and the held-out queries keep the true ones."""
    temperature: float = 0.7
    """Sampling temperature. At 1 a quarter of a small generator's samples are malformed, and RAR
    learns to write less rather than better: lists shrink to one key."""
    top_p: float = 1.0
    top_k: int = 0
    """Number of most likely tokens to sample from; 0 samples from all."""
    constrained: bool = False
    """Sample only lists that follow the grammar and use keys the distilled generator wrote. The
    log-probabilities remain those of free sampling."""
    baseline: Literal["grpo", "dr_grpo", "rloo", "greedy", "best"] = "grpo"
    """Advantage: the reward minus the group's mean, divided by its standard deviation (grpo) or not
    (dr_grpo), or minus the mean of the group's other samples (rloo), or minus the reward of the
    greedy list, which is what will be deployed (greedy). `best` is no baseline but a rival:
    supervised training on the best list of each group."""
    live_by: Literal["reward", "rank"] = "reward"
    """What the well-formed samples of a group must differ in to teach: rewards, or also the rank of
    the best positive, which a margin moves without effect."""
    candidates: int | None = None
    """Queries sampled and rewarded a step, of which `queries` are updated on, live groups first
    (dynamic sampling, as in DAPO). None: as many as `queries`, live or not."""
    normalization: Literal["sample", "token", "constant"] = "sample"
    """Average over samples, over tokens (DAPO), or divide by the token budget (Dr. GRPO)."""
    drop_dead_groups: bool = False
    """Exclude groups whose advantages are all zero from the mean; they have no gradient anyway."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    """Larger than `clip_low`, this is DAPO's clip-higher."""
    ratio_cap: float | None = None
    """Upper bound of a ratio where the clip does not apply. None sets no bound."""
    importance: Literal["token", "sequence"] = "token"
    """One importance ratio per token, or one per sample (GSPO)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence from the distilled generator."""
    kl_coefficient: float = 0.05
    """Weight of the KL divergence; at 0.01 lists shrink to two keys."""
    chunk_tokens: int | None = None
    """Prompt and list tokens per microbatch of an update, over all devices. None takes all."""
    updates_per_rollout: int = 1
    """Optimizer steps per rollout; from the second one on, the clipped ratio matters."""
    held_out_share: float = 0.3
    """Fraction of the reward families held out to evaluate RAR; never trained on. Where a catalogue
    divides its reward listings into parts, `learn` is trained on, `choose` held out and `report`
    reported on instead."""
    report_share: float = 0.0
    """Fraction of the reward families that neither train nor choose the best generator; only what
    comes out is judged by them (report.json)."""
    judged: Literal["sampled", "greedy"] = "sampled"
    """How held-out lists are written: sampled, or greedily and mended, as they are deployed."""
    choose_by: Literal["reward", "recall", "reciprocal_rank"] = "reward"
    """Held-out figure by which the best generator is chosen. `recall` with a fixed `k` judges every
    reward alike."""
    evaluate_every: int = 10
    evaluation_samples: int = 4
    """Samples per held-out query, with the same random keys at every evaluation."""
    patience: int | None = None
    """Evaluations without improvement of the held-out reward after which the stage ends. None never
    ends it early."""
    samples_every: int = 10
    """Steps between entries of samples.jsonl, which holds a few sampled lists."""
    gallery_splits: tuple[str, ...] = ("reward", "train")
    refresh_gallery: int | None = None
    """Steps after which the generator annotates the gallery again, as where it is deployed it
    writes both sides. None keeps the lists of the generator that RAR starts from, and rewards lists
    that say what those say."""
    gallery_lists: Literal["greedy", "sampled"] = "greedy"
    """How it annotates the gallery again for the steps; what is judged always meets greedy lists. A
    query gains little by naming what no list in the gallery names, so that with greedy lists a key
    that most of them lack can hardly come in: all listings would have to name it at once. A sampled
    gallery, one list a listing at `temperature`, names each key as often as the generator would."""
    gallery_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the gallery's vectors; bfloat16 halves their memory and may reorder near ties."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(2e-4, warmup_share=0.05, final_share=1.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two samples make a group, whose mean is the baseline.
        self._within(
            steps=(1, MAX_STEPS),
            queries=(1, MAX_ROWS),
            group_size=(2, MAX_ROWS),
            k=(1, MAX_COUNT),
            margin_negatives=(1, MAX_ROWS),
            malformed_reward=(-MAX_FACTOR, MAX_FACTOR),
            temperature=(TINY, MAX_FACTOR),
            top_p=(TINY, 1),
            top_k=(0, MAX_COUNT),
            clip_low=(0, MAX_FACTOR),
            clip_high=(0, MAX_FACTOR),
            kl_coefficient=(0, MAX_FACTOR),
            chunk_tokens=(1, MAX_COUNT),
            updates_per_rollout=(1, 10_000),
            candidates=(1, MAX_ROWS),
            refresh_gallery=(1, MAX_STEPS),
            evaluate_every=(1, MAX_STEPS),
            evaluation_samples=(1, MAX_ROWS),
            patience=(1, MAX_STEPS),
            samples_every=(1, MAX_STEPS),
        )
        require(0 <= self.length_price < 1, "length_price must lie in [0, 1)")
        require(self.ratio_cap is None or self.ratio_cap > 1, "ratio_cap must exceed 1")
        require(0 < self.held_out_share < 1, "held_out_share must lie in (0, 1)")
        require(
            0 <= self.report_share < 1 - self.held_out_share,
            "report_share must lie in [0, 1 - held_out_share), so that some families train",
        )
        require(
            self.candidates is None or self.candidates >= self.queries,
            f"candidates {self.candidates} must be at least queries {self.queries}, which are "
            "chosen from them",
        )
        require(
            not self.permute_rewards or self.baseline not in ("greedy", "best"),
            "permute_rewards is a placebo of baselines made of the group: set --rar.baseline grpo, "
            "dr_grpo or rloo",
        )
        require("reward" in self.gallery_splits, "the gallery must hold the reward split")
        require(
            self.gallery_lists == "greedy" or self.refresh_gallery is not None,
            "gallery_lists sampled is of a gallery that is annotated again: set refresh_gallery",
        )
        require(
            not self.optimizer.ema_decay,
            "rar.optimizer.ema_decay must be 0: RAR keeps the weights of its best evaluation",
        )


@dataclass(frozen=True)
class CitConfig(Settings):
    """Cyclic training: the reinforced generator annotates a share of the listings again, and the
    embedder continues training on them.
    """

    cycles: int = 1
    """Every cycle continues from the last one and is a row of the results."""
    share: float = 0.3
    """Fraction of the training listings that take the reinforced generator's attributes in a cycle;
    each cycle takes further ones."""
    choice: Literal["random", "difference"] = "difference"
    """Which listings: those whose attributes changed most (all are annotated to find them), or
    random ones as in the paper."""
    steps: int = 20
    learning_rate: float = 3e-4
    fresh_batches: bool = True
    """Whether a cycle draws pairs of its own. Off, it repeats the first batches that the embedder
    was trained on before. A run keeps what it began with."""
    rar_between: bool = False
    """Reinforce the generator once more before every cycle but the first, with the embedder of the
    cycle before as the judge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(cycles=(0, MAX_CYCLES), steps=(1, MAX_STEPS), learning_rate=(TINY, MAX_FACTOR))
        require(0 < self.share <= 1, "share must lie in (0, 1]")
