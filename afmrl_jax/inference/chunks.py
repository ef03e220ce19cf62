"""Items in chunks: the next chunk is read and decoded while the current one is embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from afmrl_jax.data.sources.row_builder import RowBuilder

T = TypeVar("T")

CHUNK_BATCHES = 4
"""Batches per chunk; two chunks of pictures are in memory: one embedded, one decoded ahead."""


def decoded_chunks(
    count: int,
    size: int,
    builder_of: Callable[[int, int], RowBuilder],
    row: Callable[[RowBuilder, int, int], T],
    *,
    begin: int = 0,
) -> Iterator[tuple[RowBuilder, list[T]]]:
    """What is made of items `begin` to `count`, `size` at a time.

    Args:
        count: how many items there are.
        size: items per chunk.
        builder_of: gives a builder of the items from one number up to, but excluding, another.
        row: makes it of one: from a chunk's builder, the position in the chunk, and the number.
        begin: number of the first item.
    """

    def build(first: int) -> tuple[RowBuilder, list[T]]:
        end = min(first + size, count)
        builder = builder_of(first, end)
        # Pillow decodes outside Python's lock.
        return builder, list(decoders.map(lambda n: row(builder, n - first, n), range(first, end)))

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor() as decoders:
        waiting = ahead.submit(build, begin) if begin < count else None
        while waiting is not None:
            ready = waiting.result()
            begin += size
            waiting = ahead.submit(build, begin) if begin < count else None
            yield ready
