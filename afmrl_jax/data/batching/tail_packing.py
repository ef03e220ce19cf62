"""Several short continuations of a prompt one after the other in a row: fewer places are padding.

Lists of a batch differ in length, and the longest of all would set the length of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from afmrl_jax.data.batching.packing import best_fit_decreasing
from afmrl_jax.types import AnyArray, Int

STEPS = 4
"""Numbers of rows between a power of two and the next: few programs, for one takes longer to
compile than several updates of a small model, and little padding."""


class TailRows(NamedTuple):
    """g continuations of each of b prompts in r rows of m places, for each of p parts of a batch.

    A row has continuations of one prompt. Of each continuation all tokens but the last lie there:
    its last is predicted, never read.
    """

    prompt: Int[AnyArray, "p r"]
    """Whose continuations a row has."""
    source: Int[AnyArray, "p r m"]
    """Which of the b * g * n tokens lies at a place; 0 at padding."""
    segment: Int[AnyArray, "p r m"]
    """Number of its continuation, from 1; 0 is padding."""
    inside: Int[AnyArray, "p r m"]
    """How many tokens of its continuation lie before it."""
    back: Int[AnyArray, "p b g n"]
    """What predicts each token of a continuation: below b * g the prompt, then places of the rows.
    Any number where there is no token."""


def packed_tails(lengths: np.ndarray, longest: int, parts: int = 1) -> TailRows:
    """Rows for the continuations of a batch.

    They depend on the lengths alone, so that a step that is repeated has the same.

    Args:
        lengths: tokens of each continuation, int [parts * b, g], at most `longest`.
        longest: places of a row, and n.
        parts: of the batch; the first has the prompts 0, parts, 2 * parts and so on.
    """
    read = np.maximum(lengths - 1, 0)
    bins = [best_fit_decreasing(x, longest) for x in read.tolist()]
    needed = max(1, *(sum(map(len, bins[part::parts])) for part in range(parts)))
    step = max(1, (1 << (needed - 1).bit_length()) // (2 * STEPS))
    rows = -(-needed // step) * step
    made = [_rows(read[part::parts], bins[part::parts], rows, longest) for part in range(parts)]
    return TailRows(*(np.stack(x) for x in zip(*made, strict=True)))


def _rows(read: np.ndarray, bins: list[list[list[int]]], count: int, longest: int) -> TailRows:
    """Of one part, without its axis."""
    prompts, group = read.shape
    prompt, shape = np.zeros(count, np.int32), (count, longest)
    source, segment, inside = (np.zeros(shape, np.int32) for _ in range(3))
    back = np.zeros((prompts, group, longest), np.int32)
    back[:, :, 0] = np.arange(prompts * group).reshape(prompts, group)
    row = 0
    for number, found in enumerate(bins):
        for members in found:
            prompt[row], offset = number, 0
            for member in members:
                size = int(read[number, member])
                own, within = slice(offset, offset + size), np.arange(size)
                source[row, own] = (number * group + member) * longest + within
                segment[row, own] = member + 1
                inside[row, own] = within
                place = prompts * group + row * longest + offset
                back[number, member, 1 : size + 1] = place + within
                offset += size
            row += 1
    return TailRows(prompt, source, segment, inside, back)
