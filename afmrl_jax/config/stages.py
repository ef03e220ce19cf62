"""Settings of the stages, as frozen dataclasses that reject invalid values when built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from afmrl_jax.config.data import InputDropout, ViewShares
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
class MiningConfig(Settings):
    """Hard negatives: listings that the embedder confuses with a query's product.

    Every `every` steps the embedder encodes the training listings and finds the nearest neighbors
    of each. Neighbors of the same product or duplicate group are dropped, and so are those that
    score above a fraction of the positives' mean, because they are often unlabeled duplicates
    (NV-Retriever, arXiv 2407.15831, whose best rule is `TopK-PercPos` at 95 %).
    """

    hard_negatives: int = 0
    """Extra candidates per query, contrasted with all queries of the batch. 0 turns mining off."""
    every: int = 50
    """Steps between two searches; the first one comes before the first step."""
    depth: int = 1000
    """Number of nearest neighbors considered. Early in training most of them score above the
    positives; where none is left, random listings fill in."""
    skip: int = 0
    """Number of remaining neighbors to skip, nearest first."""
    margin: float | None = 0.95
    """Fraction of the positives' mean score above which a listing is dropped. None keeps all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(
            hard_negatives=(0, MAX_ROWS),
            every=(1, MAX_STEPS),
            depth=(0, MAX_COUNT),
            skip=(0, MAX_COUNT),
        )
        require(self.margin is None or 0 < self.margin <= 1, "mining.margin must lie in (0, 1]")
        require(
            self.depth >= self.skip + self.hard_negatives,
            "mining.depth must be at least mining.skip + mining.hard_negatives",
        )


@dataclass(frozen=True)
class AgclConfig(Settings):
    """Contrastive training of the embedder. With `gamma=0` and no masks it is InfoNCE."""

    steps: int = 60
    batch_size: int = 128
    """Query/candidate pairs per step; every product occurs once in a batch."""
    sibling_share: float = 0.15
    """Fraction of the batch drawn as siblings: near-identical products of one family. With half
    the batch, the embedder learned colors well but told families apart badly."""
    category_share: float = 0.0
    """Fraction of the batch drawn as sub-batches of a single category, whose products are harder to
    tell apart. 1 builds the whole batch this way, as VLM2Vec-V2 does by data set (interleaved
    sub-batches, arXiv 2507.04590)."""
    category_batch: int = 16
    """Products per sub-batch."""
    duplicate_share: float = 0.0
    """Fraction of the batch drawn as products together with another product of their
    `duplicate_group`."""
    mask_duplicate_groups: bool = True
    """Treat listings of one `duplicate_group` as the same product in the loss. When off, only the
    learned masks can find them, which is how the masks are studied."""
    temperature: float = 0.05
    gamma: float = 0.1
    """Scale of BM25 in w = exp(1 + tanh(gamma B)); the paper uses 1, which saturates."""
    delta: float | None = 0.3
    """Margin of the false-negative mask: pairs with s_ij > s_ii + delta are removed. None turns it
    off. Watch `masked_by_margin` in the log: on the furniture 0.1 removed 1.2 % of the pairs, a
    hundred times as many as there are false negatives, and so the hardest true ones."""
    agreement_rho: float | None = None
    """Attribute agreement: pairs with B_ij >= rho B_ii and s_ij > s_ii - epsilon are removed.
    None turns it off."""
    agreement_epsilon: float = 0.1
    symmetric: bool = True
    """Also contrast each candidate with all queries."""
    bm25_reverse: bool = False
    """In the second direction score the query's list as the document, rather than transpose B. It
    differs a little, because BM25 normalizes by the length of the document."""
    positives: Literal["pair", "product"] = "pair"
    """What other listings of the query's product are: `pair` leaves them out of the loss, `product`
    counts them as positives, as SupCon does."""
    vector_precision: Literal["auto", "float32", "bf16_x3"] = "auto"
    """How cosines and gradients by vectors are multiplied: `float32` exactly, `bf16_x3` as three
    products of bfloat16 parts, with errors of cosines below 1e-5. `auto` is `bf16_x3` on GPUs with
    bfloat16 and `float32` elsewhere."""
    prefix_weight: float = 0.5
    """Weight of the loss on the hidden state before the attributes. The lists alone tell most
    products of a batch apart; without this term the embedder stops learning from pictures and
    titles."""
    chunk_tokens: int | None = None
    """Tokens (visual and padding tokens included) that each device encodes at once, for batches
    that exceed memory. The vectors of all chunks enter one loss, with the gradients of the whole
    batch, at the cost of a second forward pass through the decoder. None encodes all rows at
    once."""
    views: ViewShares = field(default_factory=ViewShares)
    mining: MiningConfig = field(default_factory=MiningConfig)
    dropout: InputDropout = field(default_factory=InputDropout)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(2e-3))

    def __post_init__(self) -> None:
        super().__post_init__()
        # A contrastive batch needs at least two products.
        self._within(
            steps=(1, MAX_STEPS),
            batch_size=(2, MAX_ROWS),
            category_batch=(2, MAX_ROWS),
            temperature=(TINY, MAX_FACTOR),
            gamma=(-MAX_FACTOR, MAX_FACTOR),
            delta=(-MAX_FACTOR, MAX_FACTOR),
            agreement_rho=(-MAX_FACTOR, MAX_FACTOR),
            agreement_epsilon=(-MAX_FACTOR, MAX_FACTOR),
            chunk_tokens=(1, MAX_COUNT),
        )
        shares = {x: getattr(self, f"{x}_share") for x in ("sibling", "category", "duplicate")}
        for name, share in shares.items():
            require(0 <= share <= 1, f"{name}_share must lie in [0, 1]")
        require(
            sum(shares.values()) <= 1 + 1e-9,
            "sibling_share, category_share and duplicate_share divide one batch, but "
            f"add up to {sum(shares.values()):.2f}; lower one",
        )
        require(0 <= self.prefix_weight < 1, "prefix_weight must lie in [0, 1)")

    def infonce(self) -> AgclConfig:
        """The same training without weights and without a learned mask."""
        return dataclasses.replace(self, gamma=0.0, delta=None, agreement_rho=None)


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """InfoNCE from random weights: the embedder from which every row of the results starts.

    It has seen pictures, titles and attribute lists, as the paper's pretrained Qwen2-VL has.
    """

    steps: int = 300
    """With 0 the rows start from random weights."""
    batch_size: int = 32
    whole_list: float = 0.3
    """Probability that a row has no attributes at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(steps=(0, MAX_STEPS), batch_size=(2, MAX_ROWS))
        require(0 <= self.whole_list < 1, "whole_list must lie in [0, 1)")

    def settings(self, agcl: AgclConfig) -> AgclConfig:
        """How the backbone is trained: like the rows, without weights and masks."""
        replace = dataclasses.replace
        dropout = replace(agcl.dropout, whole_list=self.whole_list)
        size = {"steps": self.steps, "batch_size": self.batch_size}
        # The neighbors of an embedder with random weights are noise.
        return replace(agcl.infonce(), dropout=dropout, mining=MiningConfig(), **size)


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
