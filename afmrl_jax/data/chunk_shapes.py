"""Shapes of the chunks of large batches: few, fixed for a run, and with little padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MOST_SHAPES = 4
"""Different lengths of one plan; each is a loop of its own in the program."""
WORTH = 0.01
"""A further length must save this share of all padded places."""
ALIGNED = 256
"""Lengths from here on are multiples of 8, which matrix units like; below, that would be waste."""


class Shape(NamedTuple):
    """`count` chunks of `rows` rows of `length` places."""

    length: int
    rows: int
    count: int

    @property
    def slots(self) -> int:
        """Rows there is room for."""
        return self.rows * self.count

    @property
    def places(self) -> int:
        """Places of all chunks, padding included."""
        return self.slots * self.length


def slot_lengths(shapes: Sequence[Shape]) -> np.ndarray:
    """Length of every slot of some shapes, in their order, int [m]."""
    return np.repeat([x.length for x in shapes], [x.slots for x in shapes])


def fits(sizes: np.ndarray, shapes: Sequence[Shape]) -> bool:
    """Whether items of descending sizes, put into the slots one by one, are all short enough."""
    lengths = slot_lengths(shapes)
    return len(sizes) <= len(lengths) and bool(np.all(sizes <= lengths[: len(sizes)]))


def cover(
    samples: Sequence[np.ndarray], deviations: float, *, independent: bool, longest: int | None
) -> np.ndarray:
    """Descending sizes that most batches fit under, judged from a few of them.

    Of each size s, so many items are of that size or larger as the samples have in the mean, and
    `deviations` standard deviations more.

    Example:
        >>> batch = np.array([5, 3, 3])
        >>> cover([batch, batch], 2.0, independent=False, longest=None).tolist()
        [5, 3, 3]

    Args:
        samples: sizes of the items of some batches.
        deviations: how many.
        independent: items are drawn one by one, so that their counts deviate at least as a
            binomial does, also where there are too few samples to see it.
        longest: room for one item of this size, whatever the samples say; None for none.

    Returns:
        int [m]; m is at least the mean number of items, and the number where all have the same.
    """
    sizes = np.unique(np.concatenate(samples))
    if not len(sizes):
        return np.zeros(0, np.int64)
    counts = np.stack([len(x) - np.searchsorted(np.sort(x), sizes) for x in samples])
    mean, total = counts.mean(0), counts.max()
    spread = counts.std(0, ddof=1) if len(samples) > 1 else np.zeros(len(sizes))
    if independent:
        share = mean / total
        spread = np.maximum(spread, np.sqrt(total * share * (1 - share)))
    needed = np.ceil(mean + deviations * spread - 1e-9).astype(np.int64)
    if independent:
        needed = np.minimum(needed, total)
    if longest is not None:
        sizes = np.append(sizes, max(longest, sizes[-1]))
        needed = np.append(needed, 1)
    needed = np.maximum.accumulate(needed[::-1])[::-1]
    of_size = needed - np.append(needed[1:], 0)
    return np.repeat(sizes, of_size)[::-1]


@dataclass(frozen=True)
class Budget:
    """What one chunk may hold."""

    places: int
    """Of one device; a row longer than that is a chunk of its own."""
    devices: int = 1
    """Among which the rows of every chunk are divided evenly."""
    most: int | None = None
    """Longest length; None for no limit to rounding up."""

    def shape(self, longest: int, items: int) -> Shape:
        """Equal chunks for `items` rows of up to `longest` places."""
        length = longest if longest < ALIGNED else math.ceil(longest / 8) * 8
        length = length if self.most is None else min(length, self.most)
        room = max(1, self.places // length) * self.devices
        count = math.ceil(items / room)
        rows = math.ceil(items / (count * self.devices)) * self.devices
        return Shape(length, rows, count)


def divide(profile: np.ndarray, budget: Budget) -> tuple[Shape, ...]:
    """The few shapes under which descending sizes take the fewest places.

    Example:
        >>> divide(np.array([40, 39, 12, 11, 11, 10]), Budget(80))
        (Shape(length=40, rows=2, count=1), Shape(length=12, rows=4, count=1))

    Args:
        profile: from `cover`, [m].
        budget: of each chunk.

    Returns:
        At most `MOST_SHAPES` shapes by descending length, none for an empty profile.
    """
    if not len(profile):
        return ()
    edges = _edges(profile)
    # best[j]: the cheapest shapes for the first edges[j] items, with one more shape each round.
    best: dict[int, tuple[Shape, ...]] = {0: ()}
    found: tuple[Shape, ...] = ()
    for _ in range(MOST_SHAPES):
        following: dict[int, tuple[Shape, ...]] = {}
        for end in range(1, len(edges)):
            options = (
                (*shapes, budget.shape(int(profile[edges[start]]), edges[end] - edges[start]))
                for start, shapes in best.items()
                if start < end
            )
            following[end] = min(options, key=_places, default=())
        following = {end: shapes for end, shapes in following.items() if shapes}
        last = following.get(len(edges) - 1, ())
        if found and (not last or _places(last) > (1 - WORTH) * _places(found)):
            break
        found, best = last, following
    return found


def _places(shapes: Sequence[Shape]) -> int:
    return sum(x.places for x in shapes)


def _edges(profile: np.ndarray, most: int = 48) -> list[int]:
    """Where a shape may begin: places at which the size falls, thinned out to about `most`."""
    falls = np.flatnonzero(np.diff(profile)) + 1
    if len(falls) > most:
        # Evenly by the places that lie before them.
        before = np.cumsum(profile)[falls - 1]
        wanted = np.linspace(before[0], before[-1], most)
        falls = np.unique(falls[np.searchsorted(before, wanted)])
    return [0, *falls.tolist(), len(profile)]
