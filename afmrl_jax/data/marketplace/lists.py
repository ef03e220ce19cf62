"""Attribute lists and captions in English: the oracle's, and neutral ones for pretraining."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.lexicon import FLUFF, PHRASES, SYNONYMS
from afmrl_jax.data.marketplace.titles import phrase
from afmrl_jax.data.marketplace.world import ABSENT, ATTRIBUTES, others, visible_part

VARIED = 0.3
"""Probability that a text for pretraining has another word for a value than the usual one."""


def _joined(pairs: list[tuple[str, str]]) -> str:
    # As `format_attributes`, which lies in a folder that reads marketplaces.
    return "; ".join(f"{key}: {value}" for key, value in pairs)


def worded(key: str, value: str, synonyms: float, rng: np.random.Generator) -> str:
    """The word of a list for a value: its own, or with probability `synonyms` another if any."""
    words = SYNONYMS[key].get(value, ())
    other = rng.random() < synonyms and words
    return words[int(rng.integers(len(words)))] if other else value


def oracle_text(
    combination: Mapping[str, str],
    stated: Collection[str],
    settings: MarketplaceSettings,
    rng: np.random.Generator,
) -> str:
    """What a captioner writes that sees photo and title; well-formed and never empty.

    Each key has its own probability, by salience. What no photo shows it can take only from the
    title.

    Args:
        combination: the product.
        stated: keys that the title states.
        settings: the rates.
        rng: decides.
    """
    pairs: list[tuple[str, str]] = []
    for key, truth in combination.items():
        about = ATTRIBUTES[key]
        mention, wrong = rng.random(2)
        besides = others(key, combination)
        value = truth
        if wrong < settings.oracle_errors and besides:
            value = besides[int(rng.integers(len(besides)))]
        value = worded(key, value, settings.oracle_synonyms, rng)
        known = about.visible or key in stated
        if known and mention < getattr(settings, f"mention_{about.salience}"):
            pairs.append((key, value))
    if not pairs:
        pairs = [("type", combination["type"])]
    if rng.random() < settings.oracle_fluff:
        pairs.insert(int(rng.integers(len(pairs) + 1)), FLUFF[int(rng.integers(len(FLUFF)))])
    if rng.random() < settings.oracle_shuffled:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return _joined(pairs)


def full_list(combination: Mapping[str, str], rng: np.random.Generator) -> str:
    """A list of all that can be seen, in varied words and order: for pretraining."""
    pairs = [(key, worded(key, x, VARIED, rng)) for key, x in visible_part(combination).items()]
    if rng.random() < 0.3:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return _joined(pairs)


_OPENINGS = (
    "a {}",
    "this is a {}",
    "the photo shows a {}",
    "one {}",
    "here is a {}",
    "picture of a {}",
)


def caption(combination: Mapping[str, str], rng: np.random.Generator) -> str:
    """A neutral sentence on some of what can be seen, in varied words: for pretraining."""
    seen = visible_part(combination)
    kind = phrase("type", seen.pop("type"), "en", VARIED, rng)
    share = float(rng.random())
    parts = [
        phrase(key, value, "en", VARIED, rng)
        for key, value in seen.items()
        if rng.random() < share and not (value in ABSENT and rng.random() < 0.5)
    ]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))].format(kind)
    return f"{opening}, {', '.join(parts)}" if parts else opening


def canonical(key: str, word: str) -> str | None:
    """The value that a word of a list stands for, None if it is none of the key's.

    Example:
        >>> canonical("color", "crimson"), canonical("color", "loud")
        ('red', None)
    """
    return _MEANING.get(key, {}).get(word)


_MEANING: dict[str, dict[str, str]] = {
    key: {word: value for value in table for word in (value, *SYNONYMS[key].get(value, ()))}
    for key, table in PHRASES.items()
}
