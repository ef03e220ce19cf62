"""Rewards against their published definitions."""

import math
import os

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from afmrl_jax.config import RarConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.objectives.rewards import (
    NEEDS,
    REWARDS,
    Outcome,
    Reward,
    apply_malformed,
    find_reward,
    ndcg,
    rewarded,
    whole_ndcg,
)


def outcome(ranks, *, k=3, listings=10, tokens=None, **changes):
    """Of one query with one list, whose positives stand at `ranks`."""
    ranks = jnp.array([[ranks]], jnp.int32)
    real = ranks <= listings
    values = {
        "rank": jnp.min(ranks - jnp.argsort(jnp.argsort(ranks)), axis=-1).astype(jnp.int32),
        "ranks": ranks,
        "positives": jnp.sum(real, axis=-1)[:, 0].astype(jnp.int32),
        "margin": jnp.array([[0.25]]),
        "tokens": jnp.array([[tokens or 8]], jnp.int32),
        "attributes": jnp.array([[3]], jnp.int32),
        "budget": 16,
        "k": k,
    }
    return Outcome(**(values | changes))


@pytest.mark.parametrize(
    ("name", "ranks", "expected"),
    [
        ("recall", [3], 1.0),
        ("recall", [4], 0.0),
        ("recall", [11], 0.0),
        ("reciprocal_rank", [4], 0.25),
        ("margin", [4], 0.25),
        ("length_aware", [1], 1 - 0.1 * 8 / 16),
        ("length_aware", [9], -0.1 * 8 / 16),
    ],
)
def test_rewards_of_one_list(name, ranks, expected):
    np.testing.assert_allclose(find_reward(name)(outcome(ranks)), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("ranks", [[1], [2, 5], [1, 2, 3, 4], [4, 9], [7, 1, 3]])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_equals_scikit_learn(ranks, k):
    truth = np.zeros(10)
    truth[np.array(ranks) - 1] = 1
    expected = ndcg_score([truth], [np.arange(10, 0, -1)], k=k)
    padded = ranks + [11] * 2
    np.testing.assert_allclose(ndcg(outcome(padded, k=k)), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("ranks", [[1], [2, 5], [4, 9], [7, 1, 3], [10, 8]])
def test_ndcg_of_the_whole_list_equals_scikit_learn(ranks):
    truth = np.zeros(10)
    truth[np.array(ranks) - 1] = 1
    expected = ndcg_score([truth], [np.arange(10, 0, -1)])
    for padded in (ranks + [11] * 2, [11, *ranks, 11]):
        np.testing.assert_allclose(whole_ndcg(outcome(padded, k=1)), [[expected]], rtol=1e-6)


def test_ndcg_of_a_query_without_positives_is_nothing():
    for reward in (ndcg, whole_ndcg):
        assert reward(outcome([11, 11])).tolist() == [[0.0]]


def test_a_users_own_reward_is_found_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "shop_rewards.py").write_text(
        "from afmrl_jax.objectives.rewards import Reward\n\n"
        "def short(outcome):\n    return 1.0 / outcome.tokens\n\n"
        "frugal = Reward(short, needs={'margin'})\n"
        "def wrong(outcome):\n    return outcome.tokens[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values = jax.tree.map(np.asarray, outcome([1]))
    none = jnp.zeros((1, 1), bool)
    found = rewarded(find_reward("shop_rewards:short"), values, none, -0.1)
    assert found.tolist() == [[0.125]]
    # Nobody knows what a bare function looks at.
    assert find_reward("shop_rewards:short").needs == NEEDS
    assert find_reward("shop_rewards:frugal").needs == {"margin"}
    assert rewarded(find_reward("shop_rewards:frugal"), values, none, -0.1).tolist() == [[0.125]]
    with pytest.raises(ConfigError, match="a number for each list"):
        rewarded(find_reward("shop_rewards:wrong"), values, none, -0.1)
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_reward("shop_rewards:missing")
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_reward("no_such_module:short")


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_looks_at_nothing_that_it_does_not_need(name):
    reward = find_reward(name, RarConfig())
    whole = outcome([2, 5])
    bare = whole._replace(**dict.fromkeys(NEEDS - reward.needs))
    np.testing.assert_array_equal(reward(bare), reward(whole))


def test_a_reward_cannot_need_what_nobody_computes(unchecked):
    with pytest.raises(ConfigError, match="sales"):
        Reward(lambda outcome: outcome.rank, needs={"sales"})


def test_an_unknown_reward_is_told_what_there_is():
    with pytest.raises(ConfigError, match="reciprocal_rank"):
        find_reward("accuracy")


def test_the_price_of_length_is_a_setting():
    found = find_reward("length_aware", RarConfig(length_price=0.5))(outcome([1]))
    assert math.isclose(float(found[0, 0]), 0.75)


def test_malformed_lists_get_the_penalty():
    found = apply_malformed(jnp.array([1.0, 0.5]), jnp.array([True, False]), -0.1)
    np.testing.assert_allclose(found, [-0.1, 0.5])


@pytest.mark.skipif(os.environ.get("AFMRL_CHECK_TYPES", "1") != "1", reason="types are not checked")
def test_annotations_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        apply_malformed(jnp.zeros((2, 3)), jnp.zeros((3, 2), bool))
