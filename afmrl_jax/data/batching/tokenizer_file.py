"""A tokenizer.json from a hub: checked before the `tokenizers` library computes with it.

The file is a program of its own. One of its parts can make a text a million times as long, and a
regular expression can take for ever, so only parts that are known not to are accepted: those of
Qwen's tokenizers, and the like.
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as HubTokenizer

from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.runtime.json_files import checked, parse_json, read_bytes
from afmrl_jax.types import JsonObject

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenization pattern; every digit is a separate piece."""
PATTERNS = (
    QWEN_SPLIT,
    # Letters with their accents in one piece, as in later Qwen models.
    QWEN_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}"),
    # Digits by threes, as in GPT-4 and Llama 3.
    QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    # GPT-2.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\s+",
    r" {2,}",
    r"\p{N}",
    r"\p{N}{1,3}",
)
"""Regular expressions that take time in proportion to the text, whatever the text."""
PARTS = {
    "normalizer": "NFC NFD NFKC NFKD Lowercase StripAccents Strip Prepend Replace",
    "pre_tokenizer": "Split ByteLevel Digits Punctuation Whitespace WhitespaceSplit",
    "decoder": "ByteLevel ByteFallback Fuse Strip Replace",
    "post_processor": "ByteLevel TemplateProcessing",
}
"""The kinds of parts that are accepted, besides sequences of them."""
MAX_PARTS = 32
MAX_GROWTH = 16
"""How many times as long the replacements of a file may make a text."""
MAX_PREFIX = 100
"""Letters that may be put before a text."""
MAX_ID = 10**7
REMEDY = "download the tokenizer again, or use that of a Qwen2-VL"


@dataclass(frozen=True)
class _Added:
    id: int
    content: str


@dataclass(frozen=True)
class _Bpe:
    vocab: dict[str, int]
    type: Literal["BPE"] = "BPE"
    dropout: float | None = None


@dataclass(frozen=True)
class _File:
    """What is checked of a tokenizer.json."""

    model: _Bpe
    added_tokens: list[_Added] = field(default_factory=list)
    normalizer: JsonObject | None = None
    pre_tokenizer: JsonObject | None = None
    decoder: JsonObject | None = None
    post_processor: JsonObject | None = None


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Turn whatever the `tokenizers` library raises into an error that names the file.

    Its panics are no subclass of `Exception`.

    Raises:
        RunError: it raised something.
    """
    try:
        yield
    except (AfmrlError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise RunError(
            f"{where}: the tokenizers library fails ({str(error)[:200]}); {REMEDY}"
        ) from error


def read_tokenizer(path: Path) -> HubTokenizer:
    """The tokenizer of a file.

    Raises:
        RunError: the file is broken, gives two tokens one id, or holds a part that is not known to
            be harmless; the message names the part.
    """
    content = read_bytes(path, remedy=REMEDY)
    raw = parse_json(content, path, remedy=REMEDY)
    found = checked(_File, raw, path, remedy=REMEDY)
    if found.model.dropout:
        raise RunError(f"{path}: model.dropout makes texts differ from time to time; set it to 0")
    for name in PARTS:
        _check_parts(name, getattr(found, name), path)
    _check_ids(found, path)
    with library_errors(str(path)):
        inner = HubTokenizer.from_buffer(content)
        for token in found.added_tokens:
            known = inner.token_to_id(token.content)
            if known != token.id:
                raise RunError(
                    f"{path}: the added token {token.content[:50]!r} has id {token.id} where the "
                    f"vocabulary makes it {known}; {REMEDY}"
                )
    return inner


def _check_ids(found: _File, path: Path) -> None:
    """See that every token has an id of its own that a model could have a row for."""
    ids = found.model.vocab | {x.content: x.id for x in found.added_tokens}
    for token, number in ids.items():
        if not 0 <= number < MAX_ID:
            raise RunError(
                f"{path}: the token {token[:50]!r} has id {number}, which is not from 0 to "
                f"{MAX_ID - 1:,}; {REMEDY}"
            )
    if len(set(ids.values())) < len(ids):
        number = Counter(ids.values()).most_common(1)[0][0]
        tokens = ", ".join([repr(x[:50]) for x, n in ids.items() if n == number][:5])
        raise RunError(f"{path}: several tokens have the id {number}: {tokens}; {REMEDY}")


def _check_parts(name: str, part: JsonObject | None, path: Path) -> None:
    parts = list(_flat(part)) if part is not None else []
    if len(parts) > MAX_PARTS:
        raise RunError(f"{path}: {name} has more than {MAX_PARTS} parts; {REMEDY}")
    for one in parts:
        kind = one.get("type") if isinstance(one, dict) else one
        if kind not in PARTS[name].split():
            raise RunError(
                f"{path}: a {name} of type {reprlib.repr(kind)} is not supported; {REMEDY}"
            )
        problem = _problem(one)
        if problem:
            raise RunError(f"{path}: {name} of type {kind}: {problem}; {REMEDY}")
    if math.prod(_growth(x) for x in parts) > MAX_GROWTH:
        raise RunError(f"{path}: {name} could make a text very much longer; {REMEDY}")


def _flat(part: Any) -> Iterator[Any]:
    """The parts of a sequence, at any depth."""
    if not isinstance(part, dict) or part.get("type") != "Sequence":
        yield part
        return
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
        inner = part.get(name, [])
        for one in inner if isinstance(inner, list) else [inner]:
            yield from _flat(one)


def _problem(part: JsonObject) -> str | None:
    """What makes a part of a known kind unfit, if anything does."""
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and pattern.get("Regex", PATTERNS[0]) not in PATTERNS:
        return (
            f"the regular expression {reprlib.repr(pattern['Regex'])} is not one of those that are "
            "known to end in time"
        )
    if len(str(part.get("prepend", ""))) > MAX_PREFIX:
        return f"it puts more than {MAX_PREFIX} letters before a text"
    templates = [x for x in (part.get("single"), part.get("pair")) if x is not None]
    if any(not isinstance(x, list) or len(x) > MAX_PARTS for x in templates):
        return f"a template has more than {MAX_PARTS} pieces"
    return None


def _growth(part: JsonObject) -> int:
    """How many times as long a part can make a text; an empty pattern matches between letters."""
    return 1 + len(str(part.get("content", ""))) if part["type"] == "Replace" else 1
