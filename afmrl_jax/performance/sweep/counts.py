"""Contents of a batch: listings, tokens, pictures, lists, and the operations they need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afmrl_jax.config import QwenVLConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import Batch, DistillBatch
from afmrl_jax.performance.flops import Passes
from afmrl_jax.performance.sweep.cell import Cell


@dataclass(frozen=True)
class Counts:
    """Counts of one batch, without padding."""

    samples: int
    """Listings: both sides of a pair."""
    tokens: int
    """Tokens of rows, including those of pictures, and generated tokens."""
    images: int
    rollouts: int
    """Lists generated."""
    useful: float
    """Operations that the task needs."""
    recomputed: float
    """Operations done a second time to save memory."""
    padding: float
    """Share of the rows' token places that are padding."""


def picture_patches(rows: VLBatch) -> np.ndarray:
    """Patches of each picture of a `VLBatch` on the host, int [pictures]."""
    found = []
    for segment in np.asarray(rows.patch_segment):
        counts = np.bincount(segment.ravel())[1:]
        found += counts[counts > 0].tolist()
    return np.asarray(found, np.int64)


def count(cell: Cell, config: QwenVLConfig, batch: Batch) -> Counts:
    """Counts of a batch that is on the host."""
    rows = batch.rows
    assert isinstance(rows, VLBatch)
    lengths, patches = np.asarray(rows.token_mask).sum(axis=1), picture_patches(rows)
    scored = int((batch.weights > 0).sum()) if isinstance(batch, DistillBatch) else 0
    once = Passes.over(config, patches, lengths, scored)
    lists = len(lengths) * cell.group_size if cell.task in ("generate", "rar") else 0
    written = lists * cell.max_new_tokens
    if cell.task in ("agcl", "distill"):
        useful = once.step(cell.trained)
        again = once.recomputed(cell.trained, cell.remat)
    else:
        useful, again = _writing(cell, config, once, lengths)
    return Counts(
        samples=len(lengths),
        tokens=int(lengths.sum()) + written,
        images=len(patches),
        rollouts=lists,
        useful=useful,
        recomputed=again,
        padding=1 - float(lengths.sum()) / rows.token_mask.size,
    )


def _writing(
    cell: Cell, config: QwenVLConfig, prompts: Passes, lengths: np.ndarray
) -> tuple[float, float]:
    """Useful and recomputed operations of sampling; for RAR also of scoring with the reference
    and of the update.
    """
    whole = prompts + Passes.behind(config, lengths, cell.group_size, cell.max_new_tokens)
    if cell.task == "generate":
        return whole.forward, 0.0
    return whole.reinforcement(cell.trained), whole.recomputed(cell.trained, cell.remat)
