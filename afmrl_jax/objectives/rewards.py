"""Rewards of attribute lists: what retrieval with them was worth. All have one signature."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp

from afmrl_jax.config import RarConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int


class Outcome(NamedTuple):
    """What a reward may use: g lists of each of q queries, and what retrieval with them found.

    Arrays are NumPy's or JAX's.
    """

    rank: Int[AnyArray, "q g"]
    """Of the best positive, 1 is first, m + 1 where there is none."""
    ranks: Int[AnyArray, "q g p"] | None
    """Place of each positive in the whole list, m + 1 at padding. None unless the
    reward needs it."""
    positives: Int[AnyArray, " q"]
    """How many positives the gallery holds."""
    margin: Float[AnyArray, "q g"] | None
    """Score of the best positive less the mean of the hardest negatives. None unless
    the reward needs it."""
    tokens: Int[AnyArray, "q g"]
    """Tokens written, the end included."""
    attributes: Int[AnyArray, "q g"]
    """Pairs of the list, 0 where malformed."""
    budget: int
    """Most tokens that may be written."""
    k: int
    """k of Recall@k."""


Need = Literal["ranks", "margin"]
"""A field of `Outcome` that costs more than counting what stands above the best positive."""
NEEDS: frozenset[Need] = frozenset(get_args(Need))


@dataclass(frozen=True)
class Reward:
    """A reward, and what has to be computed for it.

    Example:
        >>> short = Reward(lambda outcome: 1.0 / outcome.tokens)
        >>> careful = Reward(lambda outcome: outcome.margin, needs=frozenset({"margin"}))
    """

    function: Callable[..., Float[Array, "q g"]]
    """From an `Outcome` to a number for each list. Malformed lists are overruled afterwards."""
    needs: Set[Need] = frozenset()
    """Fields of `Outcome` that it reads beside those that are always there; any it does not name
    may be None."""
    settings: tuple[str, ...] = ()
    """Fields of `RarConfig` that the function takes as keyword arguments of the same names."""

    def __post_init__(self) -> None:
        # Users write plain sets, which cannot be hashed.
        object.__setattr__(self, "needs", frozenset(self.needs))
        unknown = sorted(self.needs - NEEDS)
        if unknown:
            raise ConfigError(
                f"a reward needs {', '.join(unknown)}, which is none of {', '.join(sorted(NEEDS))}"
            )

    def bound(self, settings: RarConfig) -> Reward:
        """The same reward with the values of its settings."""
        values = {name: getattr(settings, name) for name in self.settings}
        function = partial(self.function, **values) if values else self.function
        return Reward(function, self.needs)

    def __call__(self, outcome: Outcome) -> AnyArray:
        """A number for each list, malformed ones included."""
        return self.function(outcome)


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
    gain = jnp.where(ranks <= k, _discount(ranks), 0.0)
    return _of_largest(gain, jnp.minimum(jnp.asarray(outcome.positives), k))


def whole_ndcg(outcome: Outcome) -> Float[Array, "q g"]:
    """The nDCG of the whole list, in [0, 1]: as `ndcg`, with the length of the list for k.

    A rank that improves far down the list earns something too, where nDCG@k and Recall@k are 0.
    """
    # Padding stands behind every positive.
    ranks, positives = jnp.sort(jnp.asarray(outcome.ranks), axis=-1), jnp.asarray(outcome.positives)
    places = jnp.arange(1, ranks.shape[-1] + 1, dtype=jnp.int32)[None, None]
    gain = jnp.where(places <= positives[:, None, None], _discount(ranks), 0.0)
    return _of_largest(gain, positives)


def _discount(places: Array) -> Array:
    return 1.0 / jnp.log2(1.0 + places.astype(jnp.float32))


def _of_largest(gain: Array, counted: Array) -> Array:
    """Gains [q g p], summed, as a share of what `counted` positives [q] in front would bring."""
    places = jnp.arange(1, gain.shape[-1] + 1, dtype=jnp.int32)[None]
    best = jnp.where(places <= counted[:, None], _discount(places), 0.0).sum(-1)
    return gain.sum(-1) / jnp.where(best > 0, best, 1.0)[:, None]


def margin(outcome: Outcome) -> Float[Array, "q g"]:
    """How far the best positive lies above the hardest negatives, in [-2, 2].

    Continuous where ranks stand still, so almost no group is without variance.
    """
    return jnp.asarray(outcome.margin)


def length_aware(outcome: Outcome, *, length_price: float = 0.1) -> Float[Array, "q g"]:
    """Recall@k less `length_price` for a list that fills its budget, and in proportion below.

    The price must stay below 1, or a short list that finds nothing is worth more than a long one
    that finds.
    """
    filled = jnp.asarray(outcome.tokens, jnp.float32) / outcome.budget
    return recall(outcome) - length_price * filled


REWARDS: dict[str, Reward] = {
    "recall": Reward(recall),
    "reciprocal_rank": Reward(reciprocal_rank),
    "ndcg": Reward(ndcg, needs=frozenset({"ranks"})),
    "whole_ndcg": Reward(whole_ndcg, needs=frozenset({"ranks"})),
    "margin": Reward(margin, needs=frozenset({"margin"})),
    "length_aware": Reward(length_aware, settings=("length_price",)),
}
"""The rewards of this package by name; a new one is a function above and a line here."""


def find_reward(name: str, settings: RarConfig | None = None) -> Reward:
    """A reward by its name, or a user's own as `package.module:function`.

    The user's name may lead to a `Reward`, which says what it needs, or to a bare function, for
    which everything is computed.

    Args:
        name: as in `RarConfig.reward`.
        settings: of the stage; gives values to the settings that the reward takes. None leaves
            the function's own defaults.

    Raises:
        ConfigError: no such reward, module or function.
    """
    found = REWARDS[name] if name in REWARDS else _imported(name)
    return found if settings is None else found.bound(settings)


def _imported(name: str) -> Reward:
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
    if isinstance(found, Reward):
        return found
    if not callable(found):
        raise ConfigError(f"rar.reward {name!r} is neither a function nor a Reward")
    return Reward(found, needs=NEEDS)


def apply_malformed(
    reward: Float[AnyArray, "*shape"], malformed: Bool[AnyArray, "*shape"], penalty: float = -0.1
) -> Float[Array, "*shape"]:
    """Rewards with malformed outputs at `penalty`, same shape.

    A margin may lie below the penalty; `grpo.group_advantages` keeps a malformed output from
    profiting from that.
    """
    return jnp.where(malformed, penalty, reward)


def rewarded(
    reward: Reward, outcome: Outcome, malformed: Bool[AnyArray, "q g"], penalty: float
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
