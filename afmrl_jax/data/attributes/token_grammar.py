"""The grammar of attribute lists as a machine over tokens, for decoding that cannot leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afmrl_jax.errors import ConfigError
from afmrl_jax.types import AnyArray, Bool, Int

LONGEST_TOKEN = 32
"""Bytes; longer tokens (runs of spaces or dashes) are never allowed."""

NEVER = 1 << 14
"""More tokens than any budget."""

_COLON, _SEMICOLON, _SPACE = b":"[0], b";"[0], b" "[0]
_BLANKS = {0xC2: {0x85, 0xA0}, 0xE1: {0x9A}, 0xE2: {0x80, 0x81}, 0xE3: {0x80}}
"""First bytes of UTF-8 blanks, and the second bytes that identify them: a value must not begin with
one, because a value of only blanks is empty."""


class Grammar(NamedTuple):
    """`key: value; key: value` with known keys, none twice: tables over s states and v tokens."""

    following: Int[AnyArray, "s v"]
    """int16; state after each token, -1 if the token is forbidden."""
    completes: Int[AnyArray, "s v"]
    """int16; number of the key that the token completes, k for none."""
    distance: Int[AnyArray, "s k+1"]
    """int16; fewest tokens to the end, including the end token, if the given key is written next;
    in the last column, without a further key."""
    ends: Bool[AnyArray, " s"]
    """Whether the list may end here."""

    def check(self, budget: int) -> None:
        """Refuse a budget that is too small for any list.

        Raises:
            ConfigError: with the smallest budget that works.
        """
        needed = int(self.distance[0].min())
        if needed > budget:
            raise ConfigError(
                f"no attribute list fits in {budget} tokens: raise max_attribute_tokens to "
                f"{needed} or more"
            )


class _Machine:
    """The same over bytes: rows of `step` are states, columns are bytes."""

    def __init__(self, keys: Sequence[str]):
        self.keys = keys
        self.step: list[dict[int, int]] = []
        self.key_at: dict[int, int] = {}
        start, root, gap, first, inside, between = (self._state() for _ in range(6))
        # A tokenizer may put a space before the first word, as it does before any other.
        self._key_trie(root, gap)
        self.step[start] = {_SPACE: root, **self.step[root]}
        self.step[gap][_SPACE] = first
        letters = [b for b in range(256) if b >= 0x20 and b not in (_COLON, _SEMICOLON)]
        for byte in letters:
            self.step[inside][byte] = inside
            if byte in _BLANKS:
                lead = self._state()
                others = (b for b in range(0x80, 256) if b not in _BLANKS[byte])
                self.step[lead] = dict.fromkeys(others, inside)
                self.step[first][byte] = lead
            elif byte != _SPACE:
                self.step[first][byte] = inside
        self.step[inside][_SEMICOLON] = between
        self.step[between][_SPACE] = root
        self.inside = inside

    def _state(self) -> int:
        self.step.append({})
        return len(self.step) - 1

    def _key_trie(self, root: int, gap: int) -> None:
        for number, key in enumerate(self.keys):
            at = root
            for byte in key.encode():
                at = self.step[at].setdefault(byte, len(self.step))
                if at == len(self.step):
                    self._state()
            self.step[at][_COLON] = gap
            self.key_at[at] = number

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Next state [s 256], -1 if forbidden, and the completed key [s 256], k for none."""
        following = np.full((len(self.step), 256), -1, np.int16)
        completes = np.full((len(self.step), 256), len(self.keys), np.int16)
        for state, steps in enumerate(self.step):
            for byte, after in steps.items():
                following[state, byte] = after
        for state, number in self.key_at.items():
            completes[state, _COLON] = number
        return following, completes


def attribute_grammar(
    tokens: Sequence[bytes | None], keys: Sequence[str], *, vocab_size: int | None = None
) -> Grammar:
    """Tables for decoding attribute lists with some tokenizer.

    The form is `key: value; key: value`, with one space after each colon and semicolon; a value
    does not begin with a blank and holds no colon, semicolon or control character.

    Args:
        tokens: bytes of each token, None for special ones, as `BpeTokenizer.token_bytes` gives.
        keys: those that may be written: lower-case, without colon and semicolon.
        vocab_size: v, if the model has more rows than the tokenizer has tokens.

    Raises:
        ConfigError: no keys, or one that the grammar does not allow.
    """
    keys = sorted(set(keys))
    if not keys:
        raise ConfigError("a grammar needs keys, but the attribute lists they come from are empty")
    for key in keys:
        if not key or key != key.strip().lower() or set(key) & set(":;") or "\n" in key:
            raise ConfigError(
                f"{key!r} is not an attribute key: use lower case, without colon or semicolon"
            )
    machine = _Machine(keys)
    following, completes = _over_tokens(machine, tokens, vocab_size or len(tokens))
    distance = _distances(following, completes, machine.inside)
    ends = np.zeros(len(following), bool)
    ends[machine.inside] = True
    return Grammar(following, completes, distance, ends)


def _over_tokens(
    machine: _Machine, tokens: Sequence[bytes | None], vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    step, finished = machine.tables()
    none = len(machine.keys)
    usable = [i for i, x in enumerate(tokens) if x and len(x) <= LONGEST_TOKEN]
    codes = np.zeros((len(usable), LONGEST_TOKEN), np.uint8)
    lengths = np.zeros(len(usable), np.int64)
    for row, index in enumerate(usable):
        raw = tokens[index] or b""
        codes[row, : len(raw)], lengths[row] = np.frombuffer(raw, np.uint8), len(raw)
    places = np.array(usable)
    following = np.full((len(step), vocab), -1, np.int16)
    completes = np.full((len(step), vocab), none, np.int16)
    for state in range(len(step)):
        rows = np.arange(len(usable))
        at, key = np.full(len(rows), state, np.int16), np.full(len(rows), none, np.int16)
        for column in range(LONGEST_TOKEN):
            byte = codes[rows, column]
            new, after = finished[at, byte], step[at, byte]
            # Two keys in one token could be the same key twice.
            alive = (after >= 0) & ((new == none) | (key == none))
            rows, at, key = rows[alive], after[alive], np.minimum(key, new)[alive]
            done = lengths[rows] == column + 1
            following[state, places[rows[done]]] = at[done]
            completes[state, places[rows[done]]] = key[done]
            rows, at, key = rows[~done], at[~done], key[~done]
            if not len(rows):
                break
    return following, completes


def _distances(following: np.ndarray, completes: np.ndarray, inside: int) -> np.ndarray:
    """Fewest tokens to the end [s k+1], by relaxing the edges until nothing changes."""
    none = int(completes.max())
    edges = []
    for state in range(len(following)):
        ok = following[state] >= 0
        pairs = np.unique(np.stack([following[state][ok], completes[state][ok]], 1), axis=0)
        edges.append([(int(a), int(b)) for a, b in pairs])
    distance = np.full((len(following), none + 1), NEVER, np.int64)
    distance[inside, none] = 1
    while True:
        before = distance.copy()
        for state, steps in enumerate(edges):
            for after, key in steps:
                if key == none:
                    # A list that may end already needs no path through a further key.
                    if state != inside:
                        np.minimum(distance[state], distance[after] + 1, out=distance[state])
                elif state != inside:
                    way = distance[after, none] + 1
                    distance[state, key] = min(distance[state, key], way)
        if (before == distance).all():
            return np.minimum(distance, NEVER).astype(np.int16)
