"""Following a grammar's tables while decoding, on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.types import Array, Bool, Int


class Progress(NamedTuple):
    """Where each of b x g lists stands."""

    state: Int[Array, "b g"]
    used: Bool[Array, "b g k+1"]
    """Keys written; the last column, which is no key, stays False."""


def begin(grammar: Grammar, rows: int, group: int) -> Progress:
    """Before the first token."""
    return Progress(
        jnp.zeros((rows, group), jnp.int32),
        jnp.zeros((rows, group, grammar.distance.shape[1]), bool),
    )


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
    following = jnp.take(grammar.following, progress.state, axis=0).astype(jnp.int32)
    completes = jnp.take(grammar.completes, progress.state, axis=0).astype(jnp.int32)
    free = ~progress.used[:, :, None]
    near = (jnp.asarray(grammar.distance).astype(jnp.int32) <= left)[None, None]
    open_state = jnp.any(free & near, axis=-1)
    there = jnp.take_along_axis(open_state, jnp.maximum(following, 0), axis=-1)
    new = ~jnp.take_along_axis(progress.used, completes, axis=-1)
    end = jnp.take(jnp.asarray(grammar.ends), progress.state)
    return ((following >= 0) & there & new).at[..., eos_id].set(end)


def advance(grammar: Grammar, progress: Progress, token: Int[Array, "b g"]) -> Progress:
    """After a token; a forbidden one (the end, or padding after it) changes nothing."""
    after = jnp.asarray(grammar.following)[progress.state, token].astype(jnp.int32)
    key = jnp.asarray(grammar.completes)[progress.state, token].astype(jnp.int32)
    keys = jnp.arange(progress.used.shape[-1] - 1, dtype=jnp.int32)[None, None]
    wrote = (
        jnp.concatenate([keys == key[..., None], jnp.zeros((*key.shape, 1), bool)], axis=-1)
        & (after >= 0)[..., None]
    )
    return Progress(jnp.where(after >= 0, after, progress.state), progress.used | wrote)
