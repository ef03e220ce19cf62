"""Attribute texts like a catalogue's: few terms per text, a few common ones and a long tail."""

from __future__ import annotations

import numpy as np


def attribute_texts(
    count: int, vocab: int, longest: int, seed: int, *, shortest: int = 4
) -> np.ndarray:
    """Term ids of `count` texts, int32 [n longest], padded with -1.

    Frequencies follow Zipf's law, like those of colors, materials and brands.
    """
    rng = np.random.default_rng(seed)
    chance = 1.0 / np.arange(1, vocab + 1)
    terms = rng.choice(vocab, (count, longest), p=chance / chance.sum())
    lengths = rng.integers(min(shortest, longest), longest + 1, (count, 1))
    return np.where(np.arange(longest)[None] < lengths, terms, -1).astype(np.int32)
