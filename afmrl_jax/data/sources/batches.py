"""What a training step reads: the batches of the three sources.

Fields are NumPy arrays when they come from a source, and JAX arrays in a step. Grain sends batches
between processes, so their classes are defined at the top level of a module.
"""

from __future__ import annotations

from typing import NamedTuple

from afmrl_jax.data.batching.chunk_arrays import Chunks
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.row_packing import PackedRows, Prompts
from afmrl_jax.types import AnyArray, Float, Int


class Judges(NamedTuple):
    """What masks of the contrastive loss read of n listings, beside their lists."""

    teacher: Float[AnyArray, "n t"] | None = None
    """Unit vectors of the teacher; None without one."""
    oracle: Int[AnyArray, " n"] | None = None
    """Numbers; two that are equal are no negatives of each other. None without an oracle."""

    def of(self, places: Int[AnyArray, " m"]) -> Judges:
        """The same of some of the listings."""
        return Judges(*(None if x is None else x[places] for x in self))


class ContrastiveBatch(NamedTuple):
    """q queries and c candidates; see `ContrastiveSource`."""

    rows: VLBatch | PackedRows | Chunks
    """Of the queries, then of the candidates: b = q + c."""
    products: Int[AnyArray, " q"]
    """Product number of each query and of the candidate at the same position."""
    query_terms: Int[AnyArray, "q w"] | None = None
    """BM25 term ids, padded with -1; None if the loss reads none."""
    candidate_terms: Int[AnyArray, "c w"] | None = None
    candidate_products: Int[AnyArray, " c"] | None = None
    """If there are candidates after the first q."""
    prompt_last: Int[AnyArray, " b"] | None = None
    """Index of the last token before the attributes, if rows may hold some."""
    query_judges: Judges | None = None
    """If a mask reads them."""
    candidate_judges: Judges | None = None
    bad_pictures: int | None = None
    """How many pictures were left out, if that may happen; for the log, not for a step."""
    view: str | None = None
    """What queries and candidates show, such as `text-image`, if batches differ in it; for the
    log."""


class DistillBatch(NamedTuple):
    """b teacher-forced rows; see `DistillSource`."""

    rows: VLBatch | PackedRows
    targets: Int[AnyArray, "n t"]
    """The token that each position predicts; n is b, or the number of bins of packed rows."""
    weights: Float[AnyArray, "n t"]
    """Of each target in the loss; 0 outside the oracle's list."""
    prompt_last: Int[AnyArray, " b"]
    """Index of the last token of the prompt; of packed rows over all places of all bins."""
    products: Int[AnyArray, " half"]
    """Product number of the first half of the rows; the second half repeats them."""
    bad_pictures: int | None = None
    """As in `ContrastiveBatch`."""


class PromptBatch(NamedTuple):
    """Prompts of q queries; see `PromptSource`."""

    rows: Prompts
    queries: Int[AnyArray, " q"]
    """Their positions among the listings."""
    bad_pictures: int | None = None
    """As in `ContrastiveBatch`."""


Batch = ContrastiveBatch | DistillBatch | PromptBatch
