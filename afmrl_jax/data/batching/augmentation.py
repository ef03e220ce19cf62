"""Changed texts for training: dropped and swapped words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set

import numpy as np

_WORD = re.compile(r"[^\W\d_]{3,}")
"""A run of at least three letters; the `x` of dimensions does not count."""


def drop_words(text: str, rng: np.random.Generator, rate: float) -> str:
    """The text without some of its words, each dropped with chance `rate`; one always stays."""
    words = text.split()
    keep = rng.random(len(words)) >= rate
    if words and not keep.any():
        keep[int(rng.integers(len(words)))] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def word_pool(texts: Iterable[str]) -> list[str]:
    """The distinct words of some texts, lower-case and sorted."""
    return sorted({word.lower() for text in texts for word in _WORD.findall(text)})


def open_keys(lists: Sequence[str]) -> set[str]:
    """Keys with more distinct values than the square root of the number of attribute lists.

    A new listing may bring new values of such keys (a type, a style); those of the other keys (a
    color, a size) are a closed set.
    """
    values: dict[str, set[str]] = {}
    for part in (part for text in lists for part in text.split(";")):
        key, _, value = part.partition(":")
        values.setdefault(key.strip(), set()).add(value.strip())
    return {key for key, found in values.items() if len(found) > len(lists) ** 0.5}


def swap_words(
    title: str,
    attributes: str,
    *,
    keys: Set[str],
    pool: Sequence[str],
    rng: np.random.Generator,
) -> tuple[str, str]:
    """Both texts with their shared words replaced, the same word always by the same word.

    Only values of `keys` change. A replacement is one or two words of `pool` run together, so
    many replacements are words that no list holds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> swap_words("Red stool", "type: stool; color: red", keys={"type"}, pool=["a"], rng=rng)
        ('Red aa', 'type: aa; color: red')
    """
    pairs = [part.partition(":") for part in attributes.split(";")]
    swapped = [value for key, _, value in pairs if key.strip() in keys]
    values = {word.lower() for value in swapped for word in _WORD.findall(value)}
    shared = sorted({word.lower() for word in _WORD.findall(title)} & values)
    if not shared or not pool:
        return title, attributes
    new = {w: "".join(rng.choice(pool, int(rng.integers(1, 3)))) for w in shared}

    def replace(text: str) -> str:
        return _WORD.sub(lambda found: new.get(found[0].lower(), found[0]), text)

    parts = [
        f"{key}{colon}{replace(value) if key.strip() in keys else value}"
        for key, colon, value in pairs
    ]
    return replace(title), ";".join(parts)
