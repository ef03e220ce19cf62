"""Rewards of attribute lists: what a retrieval with them was worth. All behind one signature."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from afmrl_jax.axes import AnyArray, Array, Bool, Float, Int
from afmrl_jax.errors import ConfigError


class Outcome(NamedTuple):
    """What a reward may look at: g lists of each of q queries, and how R found with them.

    Arrays are NumPy's or JAX's.
    """

    rank: Int[AnyArray, "q g"]
    """Of the best positive, 1 is first, m + 1 where there is none."""
    ranks: Int[AnyArray, "q g p"] | None
    """Place of each positive in the whole list, m + 1 at padding. None for a reward
    of `BY_RANK`."""
    positives: Int[AnyArray, " q"]
    """How many positives the gallery holds."""
    margin: Float[AnyArray, "q g"] | None
    """Score of the best positive less the mean of the hardest negatives. None for a
    reward of `BY_RANK`."""
    tokens: Int[AnyArray, "q g"]
    """Tokens written, the end included."""
    attributes: Int[AnyArray, "q g"]
    """Pairs of the list, 0 where malformed."""
    budget: int
    """Most tokens that may be written."""
    k: int
    """k of Recall@k."""


Reward = Callable[[Outcome], Float[Array, "q g"]]
"""From what happened to a number for each list. Malformed lists are overruled behind it."""


def recall(outcome: Outcome) -> Float[Array, "q g"]:
    """Recall@k as in the paper: 1 where a positive is among the first k, else 0."""
    return jnp.asarray(outcome.rank <= outcome.k, jnp.float32)


def reciprocal_rank(outcome: Outcome) -> Float[Array, "q g"]:
    """1 / rank of the best positive, in (0, 1]."""
    return 1.0 / jnp.asarray(outcome.rank, jnp.float32)


def ndcg(outcome: Outcome) -> Float[Array, "q g"]:
    """nDCG@k with every positive worth 1, in [0, 1]; 0 for a query without positives.

        sum over positives among the first k of 1 / log2(1 + place), over its largest value

    Reference: Jarvelin & Kekalainen, Cumulated gain-based evaluation of IR techniques, 2002.
    """
    ranks, k = jnp.asarray(outcome.ranks), outcome.k
    gain = jnp.where(ranks <= k, 1.0 / jnp.log2(1.0 + ranks.astype(jnp.float32)), 0.0)
    places = jnp.arange(1, ranks.shape[-1] + 1, dtype=jnp.int32)[None]
    counted = places <= jnp.minimum(jnp.asarray(outcome.positives), k)[:, None]
    best = jnp.where(counted, 1.0 / jnp.log2(1.0 + places.astype(jnp.float32)), 0.0).sum(-1)
    return gain.sum(-1) / jnp.where(best > 0, best, 1.0)[:, None]


def margin(outcome: Outcome) -> Float[Array, "q g"]:
    """How far the best positive lies above the hardest negatives, in [-2, 2].

    Continuous where ranks stand still, so almost no group is without variance.
    """
    return jnp.asarray(outcome.margin)


def length_aware(outcome: Outcome, *, price: float = 0.1) -> Float[Array, "q g"]:
    """Recall@k less `price` for a list that fills its budget, and in proportion below.

    The price must stay below 1, or a short list that finds nothing is worth more than a long one
    that finds.
    """
    return recall(outcome) - price * jnp.asarray(outcome.tokens, jnp.float32) / outcome.budget


BY_RANK = ("recall", "reciprocal_rank", "length_aware")
"""Rewards that need neither the places of all positives nor the margin, which cost a sort."""


REWARDS: dict[str, Reward] = {
    "recall": recall,
    "reciprocal_rank": reciprocal_rank,
    "ndcg": ndcg,
    "margin": margin,
    "length_aware": length_aware,
}


def find_reward(name: str, *, length_price: float = 0.1) -> Reward:
    """A reward by its name, or a user's own as `package.module:function`.

    Raises:
        ConfigError: no such reward, module or function.
    """
    if name == "length_aware":
        return partial(length_aware, price=length_price)
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"rar.reward {name!r} is unknown: choose {', '.join(REWARDS)}, or give your own as "
            "package.module:function, which takes an Outcome and returns [q g]"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"rar.reward {name!r} cannot be imported ({error}); the module must be installed or "
            "on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"rar.reward {name!r} is no function")
    return found


def apply_malformed(
    reward: Float[Array, "*shape"], malformed: Bool[Array, "*shape"], penalty: float = -0.1
) -> Float[Array, "*shape"]:
    """Rewards with malformed outputs at `penalty`, same shape.

    A margin may lie below the penalty; `grpo.group_advantages` keeps a malformed output from
    profiting from that.
    """
    return jnp.where(malformed, penalty, reward)


def rewarded(
    reward: Reward, outcome: Outcome, malformed: Bool[Array, "q g"], penalty: float
) -> Float[Array, "q g"]:
    """The reward of each list, malformed ones at `penalty`; float32.

    Raises:
        ConfigError: a user's reward returned another shape.
    """
    values = jnp.asarray(reward(outcome), jnp.float32)
    if values.shape != tuple(outcome.rank.shape):
        raise ConfigError(
            f"the reward returned shape {values.shape}, and needs {outcome.rank.shape}: a number "
            "for each list of each query"
        )
    return apply_malformed(values, malformed, penalty)
