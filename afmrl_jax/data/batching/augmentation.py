"""Changed texts for training: dropped and swapped words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set

import numpy as np

_WORD = re.compile(r"[^\W\d_]{3,}")
"""A run of at least three letters; the `x` of dimensions is none."""


def drop_words(text: str, rng: np.random.Generator, rate: float) -> str:
    """The text without some of its words, each dropped with chance `rate`; one always stays."""
    words = text.split()
    keep = rng.random(len(words)) >= rate
    if words and not keep.any():
        keep[int(rng.integers(len(words)))] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def word_pool(texts: Iterable[str]) -> list[str]:
    """The different words of some texts, lower-case and sorted."""
    return sorted({word.lower() for text in texts for word in _WORD.findall(text)})


def open_keys(lists: Sequence[str]) -> set[str]:
    """Keys with more different values than the root of the number of attribute lists.

    Such values (a type, a style) are words of the trade that any new listing may bring; those of
    the other keys (a colour, a size) are a closed set.
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
    """Both texts with the words they share replaced, the same word by the same word.

    Only values of `keys` change. A replacement is one or two words of `pool` run together, so
    that many are words which no list holds.

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
