"""Following a grammar's tables while decoding, on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.types import Array, Bool, Int

WORD = 31
"""Keys to an integer, a bit each."""


class Progress(NamedTuple):
    """Where each of b x g lists stands."""

    state: Int[Array, "b g"]
    used: Int[Array, "w b g"]
    """Bits of the keys written, in w integers; that of column k, which is no key, stays 0."""


def begin(grammar: Grammar, rows: int, group: int) -> Progress:
    """Before the first token."""
    words = -(-grammar.distance.shape[1] // WORD)
    return Progress(jnp.zeros((rows, group), jnp.int32), jnp.zeros((words, rows, group), jnp.int32))


def allowed(
    grammar: Grammar, progress: Progress, eos_id: int, left: Int[Array, ""]
) -> Bool[Array, "b g v"]:
    """Tokens after which a list can still end within its budget.

    Args:
        grammar: its tables.
        progress: where the lists stand.
        eos_id: the end token.
        left: tokens that may follow the one to choose.

    A list always has such a token if it had one before, and at the start where `Grammar.check`
    passes.
    """
    following, completes = (jnp.asarray(x) for x in (grammar.following, grammar.completes))
    # Keys that lead from each state to an end in time.
    near = _bits(jnp.asarray(grammar.distance).astype(jnp.int32) <= left)

    def rows(table: Int[Array, "s v"]) -> Int[Array, "b g v"]:
        return jnp.take(table, progress.state, axis=0, mode="clip")

    def behind(states: Int[Array, "*n v"], word: Int[Array, " s"]) -> Int[Array, "*n v"]:
        found = jnp.take(word, jnp.maximum(states.astype(jnp.int32), 0), mode="clip")
        return jnp.where(states >= 0, found, 0)

    # Whole rows are copied fast, and single numbers looked up slowly: so in the smaller table.
    few_states = following.shape[0] <= progress.state.size
    key = rows(completes).astype(jnp.int32)
    there, twice = jnp.zeros(key.shape, bool), jnp.zeros(key.shape, bool)
    for number, (word, used) in enumerate(zip(near, progress.used[..., None], strict=True)):
        after = rows(behind(following, word)) if few_states else behind(rows(following), word)
        there |= (after & ~used) != 0
        twice |= _bit(key, number) & used != 0
    end = jnp.take(jnp.asarray(grammar.ends), progress.state)[..., None]
    return jnp.where(jnp.arange(key.shape[-1]) == eos_id, end, there & ~twice)


def advance(grammar: Grammar, progress: Progress, token: Int[Array, "b g"]) -> Progress:
    """After a token; a forbidden one (the end, or padding after it) changes nothing."""
    after = jnp.asarray(grammar.following)[progress.state, token].astype(jnp.int32)
    key = jnp.asarray(grammar.completes)[progress.state, token].astype(jnp.int32)
    none = grammar.distance.shape[1] - 1
    key = jnp.where((after >= 0) & (key < none), key, -1)
    wrote = jnp.stack([_bit(key, number) for number in range(len(progress.used))])
    return Progress(jnp.where(after >= 0, after, progress.state), progress.used | wrote)


def _bit(key: Int[Array, "*n"], number: int) -> Int[Array, "*n"]:
    """The bit of a key in a word, 0 if it stands in another."""
    place = key - number * WORD
    inside = (place >= 0) & (place < WORD)
    return jnp.where(inside, jax.lax.shift_left(1, jnp.clip(place, 0, WORD - 1)), 0)


def _bits(chosen: Bool[Array, "s k"]) -> Int[Array, "w s"]:
    """Bits of the chosen ones of k."""
    count = chosen.shape[1]
    words = [
        jnp.where(chosen[:, at : at + WORD], 1 << jnp.arange(min(WORD, count - at)), 0)
        for at in range(0, count, WORD)
    ]
    return jnp.stack([jnp.sum(x, axis=-1, dtype=jnp.int32) for x in words])
