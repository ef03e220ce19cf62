"""Rows to batches of one size for the embedder, with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from afmrl_jax.data.batching.collate import Row, VLBatch, bucket_length
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.sources.row_builder import RowBuilder

SAMPLES = 32
"""Batches from which the shapes of packed rows are chosen."""


def packed_batches(
    builder: RowBuilder, rows: Sequence[Row], size: int, shares: int = 1
) -> Iterator[tuple[PackedRows, np.ndarray]]:
    """Batches of `size` rows that share bins, and which rows they begin with.

    The last batch is filled up with copies.

    Args:
        builder: of the rows.
        rows: in any order.
        size: rows of a batch.
        shares: devices that divide the bins evenly.
    """
    begins = range(0, len(rows), size)
    whole = [rows[n : n + size] for n in begins if n + size <= len(rows)] or [rows]
    packer = builder.packer(whole[:: -(-len(whole) // SAMPLES)], shares)
    # Rows without pictures need no vision tower.
    blind = None if any(row.pictures for row in rows) else np.zeros(size, np.int32)
    for begin in begins:
        own = rows[begin : begin + size]
        short = min(own, key=lambda row: len(row.tokens))
        filled = [*own, *[short] * (size - len(own))]
        yield packer(filled, blind), np.arange(begin, begin + len(own))


def sorted_batches(
    builder: RowBuilder, rows: Sequence[Row], size: int
) -> Iterator[tuple[VLBatch, np.ndarray]]:
    """Batches of `size` rows of like length, each padded to a bucket; else as `packed_batches`."""
    order = np.argsort([len(row.tokens) for row in rows], kind="stable")
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        own = [rows[int(i)] for i in chosen]
        length = bucket_length(len(own[-1].tokens), builder.text)
        pictures = any(row.pictures for row in own)
        own += [own[-1]] * (size - len(own))
        yield builder.batch(own, length, with_patches=pictures), chosen
