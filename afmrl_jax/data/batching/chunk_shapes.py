"""Shapes of the chunks of large batches: few, fixed for a run, and with little padding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST_SHAPES = 12
"""Most distinct lengths in one plan; each is a separate loop in the program."""
WORTH = 0.005
"""A further length must save this share of all padded positions."""
FINER = (1, 2, 4)
"""By which factors there may be more chunks than the budget requires: the larger the chunks, the
emptier the last one."""
PER_CHUNK = 0.005
"""What a chunk costs besides its positions, as a share of the budget."""
ALIGNED = 256
"""Lengths from here on are multiples of 8, which matrix units prefer; shorter ones would waste too
much."""


class Shape(NamedTuple):
    """Chunks of `rows` rows of `length` positions, at most `chunks` of them in a batch."""

    length: int
    rows: int
    chunks: int

    @property
    def slots(self) -> int:
        """How many rows there is room for."""
        return self.rows * self.chunks


class Misfit(Exception):
    """A batch does not fit into a plan."""


def chunks_needed(sizes: np.ndarray, shapes: Sequence[Shape]) -> list[int]:
    """How many chunks of each shape are taken by items of descending sizes, one after the other.

    The last chunk of a shape is filled up with items that a shorter shape would have held, so only
    the very last chunk has empty rows.

    Example:
        >>> chunks_needed(np.array([9, 8, 8, 5, 4, 3]), [Shape(9, 2, 4), Shape(5, 2, 4)])
        [2, 1]

    Raises:
        Misfit: an item is too long, or there are too many.
    """
    used, taken = [], 0
    for number, shape in enumerate(shapes):
        shorter = shapes[number + 1].length if number + 1 < len(shapes) else -1
        longer = int(np.searchsorted(-sizes, -shorter, side="left"))
        count = math.ceil(max(0, longer - taken) / shape.rows)
        if count > shape.chunks or (count and sizes[taken] > shape.length):
            raise Misfit
        used.append(count)
        taken = min(len(sizes), taken + count * shape.rows)
    if taken < len(sizes):
        raise Misfit
    return used


def chunk_slices(used: Sequence[int], shapes: Sequence[Shape]) -> Iterator[tuple[int, int, slice]]:
    """Shape, chunk and items of every chunk in use, from the result of `chunks_needed`."""
    taken = 0
    for number, (count, shape) in enumerate(zip(used, shapes, strict=True)):
        for chunk in range(count):
            yield number, chunk, slice(taken, taken + shape.rows)
            taken += shape.rows


@dataclass(frozen=True)
class Budget:
    """What one chunk may hold."""

    places: int
    """Positions on one device; a row longer than that gets its own chunk."""
    devices: int = 1
    """The rows of every chunk are divided evenly among them."""

    def shape(self, longest: int, items: float, finer: int = 1) -> Shape:
        """Equal chunks for `items` rows of up to `longest` positions.

        `items` may be a mean; `finer` multiplies the number of chunks that is needed.
        """
        length = longest if longest < ALIGNED else math.ceil(longest / 8) * 8
        room = max(1, self.places // length) * self.devices
        count = finer * max(1, math.ceil(items / room))
        rows = max(1, math.ceil(items / (count * self.devices))) * self.devices
        return Shape(length, rows, count)


def divide(
    samples: Sequence[np.ndarray], budget: Budget, deviations: float, longest: int
) -> tuple[Shape, ...]:
    """The few shapes under which batches like the samples take the fewest positions.

    Example:
        >>> batch = np.array([40] * 4 + [12] * 12)
        >>> divide([batch, batch], Budget(80), 0.0, 40)
        (Shape(length=40, rows=2, chunks=3), Shape(length=12, rows=6, chunks=3))

    Args:
        samples: sizes of the items of some batches, above 0.
        budget: of each chunk.
        deviations: there are enough chunks up to so many standard deviations above the mean.
        longest: the largest possible size; there is at least one chunk of this length.

    Returns:
        At most `MOST_SHAPES` shapes by descending length; empty if there are no items.
    """
    pooled = np.sort(np.concatenate(samples))[::-1]
    if not len(pooled):
        return ()
    edges = _edges(pooled)
    ends = [*pooled[edges[:-1]].tolist(), 0]
    before = np.stack([[np.sum(x > end) for end in ends] for x in samples])

    def cost(start: int, end: int) -> tuple[float, Shape]:
        """Mean padded positions of a batch, for items of sizes above ends[end]."""
        counts = before[:, end] - before[:, start]
        options = []
        for finer in FINER:
            shape = budget.shape(int(ends[start]), float(counts.mean()), finer)
            chunks = np.ceil(counts / shape.rows)
            # The last chunk is filled up with the next shorter items, if there are any.
            filled = np.mean(chunks * shape.rows - counts) * (shape.length - ends[end])
            own = float(counts.mean()) * shape.length
            call = chunks.mean() * PER_CHUNK * budget.places * budget.devices
            options.append((own + float(filled) + float(call), shape))
        return min(options, key=lambda option: option[0])

    # best[j]: cost and shapes of all items before edges[j], with one more shape each round.
    best: dict[int, tuple[float, tuple[Shape, ...]]] = {0: (0.0, ())}
    costs = {(i, j): cost(i, j) for j in range(1, len(edges)) for i in range(j)}
    found: tuple[float, tuple[Shape, ...]] | None = None
    for _ in range(MOST_SHAPES):
        following: dict[int, tuple[float, tuple[Shape, ...]]] = {}
        for end in range(1, len(edges)):
            for start in best.keys() & range(end):
                more, shape = costs[start, end]
                total = best[start][0] + more
                if end not in following or total < following[end][0]:
                    following[end] = (total, (*best[start][1], shape))
        last = following.get(len(edges) - 1)
        if found is not None and (last is None or last[0] > (1 - WORTH) * found[0]):
            break
        found, best = last, following
    assert found is not None
    shapes = found[1]
    if shapes[0].length < longest:
        shapes = (budget.shape(longest, 1), *shapes)
    return tuple(_with_count(samples, shapes, n, deviations) for n in range(len(shapes)))


def _with_count(
    samples: Sequence[np.ndarray], shapes: Sequence[Shape], number: int, deviations: float
) -> Shape:
    """The shape with enough chunks for all but unusual batches."""
    shape = shapes[number]
    shorter = shapes[number + 1].length if number + 1 < len(shapes) else 0
    counts = np.array([np.sum((x > shorter) & (x <= shape.length)) for x in samples])
    total = max(len(x) for x in samples)
    share = counts.mean() / total
    # A few samples may hide how much the counts of independently drawn items vary.
    spread = max(counts.std(), math.sqrt(total * share * (1 - share)))
    wanted = counts.mean() + deviations * spread
    return shape._replace(chunks=math.ceil(wanted / shape.rows) + 1)


def _edges(sizes: np.ndarray, most: int = 48) -> list[int]:
    """Where a shape may begin: where the size drops, thinned out to about `most` places."""
    falls = np.flatnonzero(np.diff(sizes)) + 1
    if len(falls) > most:
        # Evenly, by the positions before them.
        before = np.cumsum(sizes)[falls - 1]
        wanted = np.linspace(before[0], before[-1], most)
        falls = np.unique(falls[np.searchsorted(before, wanted)])
    return [0, *falls.tolist(), len(sizes)]
