"""Settings of the stages, as frozen dataclasses that refuse nonsense when they are built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from afmrl_jax.config.data import InputDropout
from afmrl_jax.config.validation import require


@dataclass(frozen=True)
class OptimizerConfig:
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
        require(self.learning_rate > 0, "learning_rate must be positive")
        require(0 <= self.warmup_share < 1, "warmup_share must lie in [0, 1)")


@dataclass(frozen=True)
class DistillConfig:
    """Supervised distillation of the generator G from the oracle's attribute lists."""

    steps: int = 800
    batch_size: int = 32
    """Listings a step, in pairs of the same product where there are two."""
    swap_share: float = 0.5
    """Share of the rows in which the words that title and list have in common are replaced, in
    both, by words of other titles. A G from random weights would else learn the words of its few
    lists by heart and never copy one it has not seen. 0 for a pretrained G."""
    contrastive_weight: float = 0.3
    """Weight of an InfoNCE term on the prompt's last state, which makes a G from random weights
    look at pictures early. 0 for a pretrained G."""
    structure_weight: float = 0.2
    """Weight of the tokens that are no value (keys, punctuation, end) in the cross entropy; the
    order of keys is the oracle's whim and would drown the values."""
    logits_at_once: int | None = None
    """Tokens of each row whose vocabulary logits are held at once. A large vocabulary fills the
    memory with them; None forms all, which is fastest for a small one."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(2e-3, warmup_share=0.03, weight_decay=0.5)
    )

    def __post_init__(self) -> None:
        require(self.steps > 0, "distill needs steps > 0")
        require(self.batch_size > 1, "distill needs batch_size > 1")
        require(0 <= self.swap_share <= 1, "swap_share must lie in [0, 1]")
        require(self.contrastive_weight >= 0, "contrastive_weight must not be negative")
        require(self.structure_weight > 0, "structure_weight must be positive")
        at_once = self.logits_at_once
        require(at_once is None or at_once > 0, "logits_at_once must be positive")


@dataclass(frozen=True)
class MiningConfig:
    """Hard negatives: listings that the R in training takes for a query's product, and are not.

    Every `every` steps R embeds the training listings, and each looks for its nearest among the
    others. Of what it finds, listings of its own product or duplicate group are dropped, and those
    that score above a share of its positives: such are often the same product unbeknown
    (NV-Retriever, arXiv 2407.15831, whose best rule is `TopK-PercPos` at 95 %).
    """

    hard_negatives: int = 0
    """Extra candidates a query, contrasted with all queries of the batch. 0: off."""
    every: int = 50
    """Steps between two searches; the first is before the first step."""
    depth: int = 1000
    """How many of the nearest listings are looked at. To an R of few steps most of them are nearer
    than the positives; where nothing is left, random listings take the place."""
    skip: int = 0
    """How many of the nearest that are left after the rules are passed over."""
    margin: float | None = 0.95
    """Share of the positives' mean score above which a listing is dropped. None: off."""

    def __post_init__(self) -> None:
        require(self.hard_negatives >= 0, "hard_negatives must not be negative")
        require(self.every > 0, "mining.every must be positive")
        require(self.skip >= 0, "mining.skip must not be negative")
        require(self.margin is None or 0 < self.margin <= 1, "mining.margin must lie in (0, 1]")
        require(
            self.depth >= self.skip + self.hard_negatives,
            "mining.depth must hold what is skipped and the hard negatives behind it",
        )


@dataclass(frozen=True)
class AgclConfig:
    """Contrastive training of the embedder R. `gamma=0` and no masks make it InfoNCE."""

    steps: int = 60
    batch_size: int = 128
    """Query/candidate pairs a step; every product occurs once in a batch."""
    sibling_share: float = 0.15
    """Share of the batch drawn as family siblings (near-twin products). Where half the batch was
    siblings R learned colours well and other families badly."""
    category_share: float = 0.0
    """Share of the batch drawn as sub-batches of one category each, whose products differ in less
    than the catalogue's do; 1 cuts the whole batch so, as VLM2Vec-V2 does by data set
    (interleaved sub-batches, arXiv 2507.04590)."""
    category_batch: int = 16
    """Products of one such sub-batch."""
    duplicate_share: float = 0.0
    """Share of the batch drawn as products that meet another product id of their
    `duplicate_group`."""
    mask_duplicate_groups: bool = True
    """Listings of one `duplicate_group` are the same product for the loss. Off, only the learned
    masks can find them, which is how those are studied."""
    temperature: float = 0.05
    gamma: float = 0.1
    """Scale of BM25 inside w = exp(1 + tanh(gamma B)); the paper has 1, which saturates."""
    delta: float | None = 0.3
    """Margin of the false-negative mask: s_ij > s_ii + delta leaves. None: off. Look at
    `masked_by_margin` in the log: on furniture 0.1 took 1.2 % of the pairs, a hundred times the
    false negatives there are, and so the hardest true ones."""
    agreement_rho: float | None = None
    """Attribute agreement: B_ij >= rho B_ii and s_ij > s_ii - epsilon leaves. None: off."""
    agreement_epsilon: float = 0.1
    symmetric: bool = True
    """Also contrast each candidate with all queries."""
    prefix_weight: float = 0.5
    """Share of the loss that contrasts what R knows before it reads the attributes. The lists alone
    tell most products of a batch apart; without it R stops learning from pictures and titles."""
    chunk_tokens: int | None = None
    """Token places that each device encodes at once, those of pictures and padding included: for
    batches beyond memory. The vectors of all chunks meet in one loss, with the gradients of the
    whole batch; the price is a second pass forward through the decoder. None encodes all rows at
    once."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    dropout: InputDropout = field(default_factory=InputDropout)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(2e-3))

    def __post_init__(self) -> None:
        chunk = self.chunk_tokens
        require(chunk is None or chunk > 0, "agcl.chunk_tokens must be positive, or None for off")
        require(self.steps > 0, "agcl needs steps > 0")
        require(self.batch_size > 1, "a contrastive batch needs at least two products")
        require(self.temperature > 0, "temperature must be positive")
        shares = {x: getattr(self, f"{x}_share") for x in ("sibling", "category", "duplicate")}
        for name, share in shares.items():
            require(0 <= share <= 1, f"{name}_share must lie in [0, 1]")
        require(
            sum(shares.values()) <= 1 + 1e-9,
            "sibling_share, category_share and duplicate_share divide one batch: lower one, for "
            f"they add up to {sum(shares.values()):.2f}",
        )
        require(self.category_batch > 1, "a category_batch needs at least two products")
        require(0 <= self.prefix_weight < 1, "prefix_weight must lie in [0, 1)")

    def infonce(self) -> AgclConfig:
        """The same training without weights and without a learned mask."""
        return dataclasses.replace(self, gamma=0.0, delta=None, agreement_rho=None)


@dataclass(frozen=True)
class BackboneConfig:
    """InfoNCE from random weights: every row starts from one R, as the paper's from Qwen2-VL.

    It is an R that has read pictures, titles and attribute lists, as a pretrained model has.
    """

    steps: int = 300
    """0: the rows start from random weights."""
    batch_size: int = 32
    whole_list: float = 0.3
    """Chance that a row sees no attribute at all."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "backbone steps must not be negative")
        require(self.batch_size > 1, "a contrastive batch needs at least two products")

    def settings(self, agcl: AgclConfig) -> AgclConfig:
        """How the backbone is trained: as the rows are, without weights and masks."""
        replace = dataclasses.replace
        dropout = replace(agcl.dropout, whole_list=self.whole_list)
        size = {"steps": self.steps, "batch_size": self.batch_size}
        # What an R of random weights takes for near is noise.
        return replace(agcl.infonce(), dropout=dropout, mining=MiningConfig(), **size)


@dataclass(frozen=True)
class EvaluationConfig:
    """What the evaluation does with the frozen models."""

    batch_size: int = 128
    bootstrap: int = 2000
    """Resamples behind every 95 % interval."""
    latency: bool = True
    """Measure how long encoding and searching take."""
    gallery_queries: int = 12
    """Queries shown in the report's gallery."""
