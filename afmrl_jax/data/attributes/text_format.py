"""The grammar of attribute texts: `key: value; key: value`, keys lower-case and unique."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import lines_of, parse_json
from afmrl_jax.runtime.terminal import printable


class MalformedAttributes(ValueError):
    """A text outside the grammar; the message says where."""


def parse_attributes(text: str) -> list[tuple[str, str]]:
    """Pairs in the order written.

    Raises:
        MalformedAttributes: empty text, a part without a colon, an empty or repeated key, a key
            with capitals, or an empty value.

    Example:
        >>> parse_attributes("color: red; type: chair")
        [('color', 'red'), ('type', 'chair')]
    """
    if not text.strip():
        raise MalformedAttributes("the attribute text is empty")
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for part in text.split(";"):
        key, colon, value = part.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            raise MalformedAttributes(f"{part.strip()!r} has no colon")
        if not key or not value:
            raise MalformedAttributes(f"{part.strip()!r} has an empty key or value")
        if key != key.lower():
            raise MalformedAttributes(f"key {key!r} is not lower-case")
        if key in seen:
            raise MalformedAttributes(f"key {key!r} occurs twice")
        seen.add(key)
        pairs.append((key, value))
    return pairs


def format_attributes(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs as text."""
    return "; ".join(f"{key}: {value}" for key, value in pairs)


def is_malformed(text: str) -> bool:
    """Whether a text breaks the grammar."""
    try:
        parse_attributes(text)
    except MalformedAttributes:
        return True
    return False


def salvaged_pairs(text: str) -> list[tuple[str, str]]:
    """The complete pairs of a text that may be malformed, the first of each key; may be empty.

    Example:
        >>> salvaged_pairs("type: chair; color: red; and")
        [('type', 'chair'), ('color', 'red')]
    """
    found: dict[str, str] = {}
    for part in text.split(";"):
        key, colon, value = part.partition(":")
        key, value = key.strip().lower(), value.strip()
        if colon and key and value:
            found.setdefault(key, value)
    return list(found.items())


def salvage_attributes(text: str) -> str:
    """The pairs of `salvaged_pairs` as text."""
    return format_attributes(salvaged_pairs(text))


def stated_attributes(text: str, title: str) -> str:
    """The pairs of `salvaged_pairs` whose value the title says, in the same words; may be empty.

    Capitals, hyphens and other punctuation make no difference.

    Example:
        >>> stated_attributes("type: dress; collar: v-neck; color: red", "Red dress, V neck")
        'type: dress; collar: v-neck; color: red'
        >>> stated_attributes("type: dress; color: red", "A summer dress")
        'type: dress'
    """
    said = _words(title)
    pairs = [(key, value, _words(value)) for key, value in salvaged_pairs(text)]
    return format_attributes((key, value) for key, value, words in pairs if words in said)


def _words(text: str) -> str:
    """The words of a text, each between spaces; of one without words what no other has."""
    words = re.findall(r"\w+", text.casefold())
    return f" {' '.join(words)} " if words else text


def drop_attributes(text: str, rng: np.random.Generator, rate: float) -> str:
    """The text without some of its pairs, each dropped with chance `rate`; one always stays."""
    parts = text.split(";")
    keep = rng.random(len(parts)) >= rate
    if not keep.any():
        keep[int(rng.integers(len(parts)))] = True
    return "; ".join(part.strip() for part, kept in zip(parts, keep, strict=True) if kept)


def read_attributes(path: Path) -> dict[str, str]:
    """Attribute text by listing id, from a file of JSON lines as `afmrl annotate` writes it.

    Raises:
        CatalogueError: the file cannot be read, or a line is not such a record.
    """
    found: dict[str, str] = {}
    remedy = "repair the line or remove it"
    if not path.exists():
        raise CatalogueError(f"{path} cannot be read (no such file); give a file of attributes")
    for number, line in lines_of(path, error=CatalogueError):
        where = f"{path}, line {number}"
        record = parse_json(line, where, error=CatalogueError, remedy=remedy)
        record = record if isinstance(record, dict) else {}
        name, text = record.get("listing_id"), record.get("attributes")
        if not isinstance(name, str) or not isinstance(text, str):
            raise CatalogueError(
                f"{where}: not a record with `listing_id` and `attributes`, both of them text; "
                f"{remedy}"
            )
        if printable(name) != name:
            raise CatalogueError(f"{where}: control characters in the listing_id; {remedy}")
        found[name] = text
    return found
