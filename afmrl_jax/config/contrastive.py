"""Settings of the stages that train the embedder, rejected when built if invalid."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from afmrl_jax.config.data import InputDropout, ViewShares
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
    """Scale of BM25 in w = exp(1 + tanh(gamma B)); the paper uses 1, which saturates. Below 0,
    negatives count for less the more their lists share with the query's, as in Soft-InfoNCE."""
    delta: float | None = 0.3
    """Margin of the false-negative mask: pairs with s_ij > s_ii + delta are removed. None turns it
    off. Watch `masked_by_margin` in the log: on the furniture 0.1 removed 1.2 % of the pairs, a
    hundred times as many as there are false negatives, and so the hardest true ones."""
    agreement_rho: float | None = None
    """Attribute agreement: pairs with B_ij >= rho B_ii and s_ij > s_ii - epsilon are removed.
    None turns it off."""
    agreement_epsilon: float = 0.1
    mask_warmup: float = 0.0
    """How long `delta` and `agreement_rho` wait, because an embedder that has learned little takes
    the hardest true negatives for false ones: below 1 a share of the steps, from 1 on a number of
    steps."""
    teacher_share: float | None = None
    """Share of the positive's score above which a negative is left out, both by the finished
    embedder of the stage `infonce`, from the first step on; NV-Retriever's best rule is 0.95. None
    asks no teacher."""
    oracle_mask: Literal["product", "family"] | None = None
    """Leave out what the catalogue knows and training must not: other ids of the query's true
    product (`duplicate_of`), or its whole family. A ceiling for what masks can gain, not a
    method."""
    positive_weight: Literal["own", "neutral"] = "own"
    """Weight of the positive: `own` is w of the pair, as in the paper, `neutral` that of lists that
    share nothing. Lists of one product match best, so negatives are mostly softened by `own`, and
    hardened by `neutral`."""
    weighted_pairs: Literal["all", "agreeing"] = "all"
    """Which negatives have a weight: `all`, or only those whose lists agree by `agreement_rho`. The
    agreeing ones that score near the positive leave, the others of them count for more."""
    normalize_weights: bool = False
    """Divide the weights of a query's negatives by their mean, so that hard negatives gain what
    easy ones lose. Needs `positive_weight neutral`."""
    permute_weights: bool = False
    """A placebo: the weights of each query go to its negatives in random order. What is gained with
    it is not due to what lists say."""
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
            mask_warmup=(0, MAX_STEPS),
            teacher_share=(TINY, 1),
            chunk_tokens=(1, MAX_COUNT),
        )
        self._check_weights()
        self._check_warmup()
        shares = {x: getattr(self, f"{x}_share") for x in ("sibling", "category", "duplicate")}
        for name, share in shares.items():
            require(0 <= share <= 1, f"{name}_share must lie in [0, 1]")
        require(
            sum(shares.values()) <= 1 + 1e-9,
            "sibling_share, category_share and duplicate_share divide one batch, but "
            f"add up to {sum(shares.values()):.2f}; lower one",
        )
        require(0 <= self.prefix_weight < 1, "prefix_weight must lie in [0, 1)")

    def _check_weights(self) -> None:
        require(
            not self.normalize_weights or self.positive_weight == "neutral",
            "normalize_weights divides out the weight that positive_weight own multiplies by: set "
            "--agcl.positive-weight neutral, or leave normalize_weights out",
        )
        require(
            not self.normalize_weights or self.positives == "pair",
            "normalize_weights is for one positive a query: set --agcl.positives pair, or leave "
            "normalize_weights out",
        )
        require(
            self.weighted_pairs == "all" or self.agreement_rho is not None,
            "weighted_pairs agreeing needs the share from which lists agree: set "
            "--agcl.agreement-rho, such as 0.95, or leave weighted_pairs out",
        )
        require(
            not self.permute_weights or self.gamma != 0,
            "permute_weights permutes the weights of gamma, which is 0 and makes all equal: set "
            "--agcl.gamma, or leave permute_weights out",
        )

    def _check_warmup(self) -> None:
        if not self.mask_warmup:
            return
        require(
            self.delta is not None or self.agreement_rho is not None,
            "mask_warmup delays delta and agreement_rho, and both are off: set one of them, or "
            "leave mask_warmup out",
        )
        require(
            self.mask_warmup < 1 or self.mask_warmup == int(self.mask_warmup) < self.steps,
            f"mask_warmup must be a share of the steps below 1, or a whole number of steps below "
            f"the {self.steps} of the stage, found {self.mask_warmup}",
        )

    @property
    def warmup_steps(self) -> int:
        """Steps for which the masks of `delta` and `agreement_rho` wait."""
        return round(self.mask_warmup * (self.steps if self.mask_warmup < 1 else 1))

    def infonce(self) -> AgclConfig:
        """The same training without weights and without a learned mask."""
        return dataclasses.replace(
            self,
            gamma=0.0,
            delta=None,
            agreement_rho=None,
            mask_warmup=0.0,
            teacher_share=None,
            oracle_mask=None,
            positive_weight="own",
            weighted_pairs="all",
            normalize_weights=False,
            permute_weights=False,
        )


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """InfoNCE from random weights: the embedder from which every row of the results starts.

    It has seen pictures, titles and attribute lists, as the paper's pretrained Qwen2-VL has.
    """

    steps: int = 300
    """With 0 the rows start from the embedder's own weights, random or pretrained."""
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
