"""GRPO's pieces against numbers worked by hand and a NumPy twin."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.objectives.grpo import (
    dead_groups,
    divergence,
    group_advantages,
    grpo_loss,
    token_weights,
)

# Of TRL's own trainer; make_golden_trl.py says how they come about.
TRL = json.loads((Path(__file__).parent / "golden_trl.json").read_text())
NORMALISATION = {"grpo": "sample", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}

NONE = np.zeros((1, 4), bool)


def advantages(rewards, malformed=NONE, **options):
    values = jnp.array([rewards], jnp.float32)
    return np.asarray(group_advantages(values, jnp.asarray(malformed), **options))[0]


def test_advantage_is_reward_less_mean_over_deviation():
    # Mean 0.25, deviation sqrt(0.1875) = 0.4330.
    expected = np.sqrt([3, 1 / 3, 1 / 3, 1 / 3]) * [1, -1, -1, -1]
    np.testing.assert_allclose(advantages([1, 0, 0, 0]), expected, rtol=1e-6)


def test_dr_grpo_is_the_distance_to_the_mean():
    found = advantages([1, 0, 0, 0], baseline="dr_grpo")
    np.testing.assert_allclose(found, [0.75, -0.25, -0.25, -0.25])


def test_rloo_is_the_distance_to_the_mean_of_the_others():
    found = advantages([1, 0.5, 0, 0], baseline="rloo")
    expected = [1 - 0.5 / 3, 0.5 - 1 / 3, -0.5, -0.5]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_greedy_is_the_distance_to_the_greedy_list():
    found = advantages([1, 0.5, 0.5, 0], baseline="greedy", greedy=jnp.array([0.5]))
    np.testing.assert_allclose(found, [0.5, 0, 0, -0.5])
    # All are better than what is deployed: no group mean would say so.
    found = advantages([1, 1, 1, 1], baseline="greedy", greedy=jnp.array([0.25]))
    np.testing.assert_allclose(found, [0.75] * 4)
    assert not advantages([1, 1, 1, 1], baseline="greedy", greedy=jnp.array([1.0])).any()


def test_best_is_the_first_of_the_best_lists():
    mixed = np.array([[False, False, False, True]])
    assert advantages([0, 1, 1, 0], baseline="best").tolist() == [0, 1, 0, 0]
    # A margin below the penalty is still better than a malformed list.
    assert advantages([-0.6, -0.5, -0.7, -0.1], mixed, baseline="best").tolist() == [0, 1, 0, 0]
    assert not advantages([1, 1, 1, -0.1], mixed, baseline="best").any()
    assert not advantages([-0.1] * 4, np.ones((1, 4), bool), baseline="best").any()


@pytest.mark.parametrize("baseline", ["grpo", "dr_grpo", "rloo", "greedy"])
@pytest.mark.parametrize("lowest", [0.0, -2.0])
def test_guards_hold_for_every_baseline(baseline, lowest):
    mixed = np.array([[False, False, False, True]])

    def found(rewards, malformed=mixed, greedy=lowest):
        told = {"greedy": jnp.array([greedy])} if baseline == "greedy" else {}
        return advantages(rewards, malformed, baseline=baseline, **told)

    assert not found([-0.1] * 4, np.ones((1, 4), bool)).any()
    equal = found([0, 0, 0, -0.1], greedy=0.0)
    assert not equal[:3].any()
    assert equal[3] < 0
    margins = found([-0.6, -0.5, -0.4, -0.1])
    assert margins[3] < margins[:3].min()
    # A bad greedy list is no reason to praise a broken one.
    assert margins[3] < 0


@pytest.mark.parametrize("baseline", ["grpo", "dr_grpo", "rloo", "greedy", "best"])
def test_groups_may_be_declared_dead(baseline):
    told = {"greedy": jnp.array([0.5])} if baseline == "greedy" else {}
    mixed = np.array([[False, False, False, True]])
    rewards = [0.5, 0.25, 0.25, -0.1]
    assert advantages(rewards, mixed, baseline=baseline, **told)[:3].any()
    found = advantages(rewards, mixed, baseline=baseline, dead=jnp.array([True]), **told)
    assert not found[:3].any()


def test_greedy_lists_belong_to_their_baseline():
    with pytest.raises(ValueError, match="baseline greedy"):
        advantages([1, 0, 0, 0], baseline="greedy")
    with pytest.raises(ValueError, match="baseline rloo"):
        advantages([1, 0, 0, 0], baseline="rloo", greedy=jnp.array([0.5]))


def test_equal_rewards_give_no_advantage():
    np.testing.assert_array_equal(advantages([1, 1, 1, 1]), 0)


def test_group_of_malformed_lists_gives_no_advantage():
    found = advantages([-0.1] * 4, np.ones((1, 4), bool))
    np.testing.assert_array_equal(found, 0)


def test_equal_well_formed_rewards_punish_the_malformed_and_praise_nobody():
    malformed = np.array([[False, False, False, True]])
    found = advantages([0, 0, 0, -0.1], malformed)
    np.testing.assert_array_equal(found[:3], 0)
    assert found[3] < 0


def test_malformed_list_never_beats_a_well_formed_one():
    # Margins may lie below the penalty of -0.1.
    malformed = np.array([[False, False, False, True]])
    found = advantages([-0.6, -0.5, -0.4, -0.1], malformed)
    assert found[3] < found[:3].min()


def test_rounding_is_no_signal():
    np.testing.assert_array_equal(advantages([0.5, 0.5 + 1e-6, 0.5, 0.5]), 0)


def test_dead_groups_are_those_whose_well_formed_rewards_are_equal():
    rewards = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, -0.1], [-0.1, -0.1]])
    malformed = jnp.array([[False, False], [False, False], [False, True], [True, True]])
    assert dead_groups(rewards, malformed).tolist() == [False, True, True, True]


def numpy_grpo(new, old, reference, advantage, mask, low, high, beta):
    total = 0.0
    for q in range(new.shape[0]):
        for g in range(new.shape[1]):
            value = 0.0
            for n in np.flatnonzero(mask[q, g]):
                ratio = np.exp(new[q, g, n] - old[q, g, n])
                a = advantage[q, g]
                kept = min(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)
                gap = reference[q, g, n] - new[q, g, n]
                value += kept - beta * (np.exp(gap) - gap - 1)
            total += value / max(mask[q, g].sum(), 1)
    return -total / (new.shape[0] * new.shape[1])


@pytest.fixture
def problem(rng):
    shape = (3, 4, 5)
    new, old, reference = (-rng.uniform(0.1, 3, shape) for _ in range(3))
    lengths = rng.integers(1, 6, shape[:2])
    mask = np.arange(5) < lengths[..., None]
    return new, old, reference, rng.normal(size=shape[:2]), mask


def test_loss_equals_the_twin(problem):
    new, old, reference, advantage, mask = problem
    arrays = [jnp.asarray(x, jnp.float32) for x in (new, old, reference, advantage)]
    loss, _ = grpo_loss(*arrays, jnp.asarray(mask), clip_low=0.1, clip_high=0.3, kl_coefficient=0.2)
    expected = numpy_grpo(new, old, reference, advantage, mask, 0.1, 0.3, 0.2)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_gradient_equals_finite_differences_of_the_twin(problem):
    new, old, reference, advantage, mask = problem
    rest = [jnp.asarray(x, jnp.float32) for x in (old, reference, advantage)]
    gradient = np.asarray(
        jax.grad(lambda x: grpo_loss(x, *rest, jnp.asarray(mask), kl_coefficient=0.2)[0])(
            jnp.asarray(new, jnp.float32)
        )
    )
    step = 1e-6
    for place in [(0, 0, 0), (1, 2, 0), (2, 3, 0), (0, 1, 4)]:
        up, down = new.copy(), new.copy()
        up[place] += step
        down[place] -= step
        slope = (
            numpy_grpo(up, old, reference, advantage, mask, 0.2, 0.2, 0.2)
            - numpy_grpo(down, old, reference, advantage, mask, 0.2, 0.2, 0.2)
        ) / (2 * step)
        np.testing.assert_allclose(gradient[place], slope, atol=2e-6)


def test_masked_tokens_may_hold_anything(problem):
    new, old, reference, advantage, mask = problem
    dirty = np.where(mask, new, -np.inf)
    arrays = [jnp.asarray(x, jnp.float32) for x in (old, reference, advantage)]
    value = jax.value_and_grad(lambda x: grpo_loss(x, *arrays, jnp.asarray(mask))[0])
    clean, clean_gradient = value(jnp.asarray(new, jnp.float32))
    loss, gradient = value(jnp.asarray(dirty, jnp.float32))
    assert float(loss) == float(clean)
    np.testing.assert_array_equal(gradient, clean_gradient)


def test_clip_stops_the_gradient_of_a_ratio_that_went_far_enough():
    new = jnp.array([[[-0.5], [-0.5]]])
    old = jnp.array([[[-1.0], [-0.5]]])  # Ratio 1.65, outside the clip.
    mask, advantage = jnp.ones((1, 2, 1), bool), jnp.array([[1.0, -1.0]])
    gradient = jax.grad(lambda x: grpo_loss(x, old, x, advantage, mask, kl_coefficient=0.0)[0])(new)
    np.testing.assert_allclose(gradient[0, :, 0], [0.0, 0.5])


def trl_name(case):
    return "-".join(str(x) for x in list(case.values())[:5])


@pytest.mark.parametrize("case", TRL["cases"], ids=trl_name)
def test_loss_and_gradient_equal_trls(case):
    """Two groups of four; TRL's samples stand in one row."""
    group = (2, 4, 6)
    with jax.enable_x64():
        values = {name: jnp.asarray(np.array(x)) for name, x in TRL["values"].items()}
        new, old, reference, mask = (
            values[x].reshape(group) for x in ("logprobs", "old", "reference", "mask")
        )
        weights = token_weights(mask, normalization=NORMALISATION[case["loss_type"]])

        def loss(new):
            return grpo_loss(
                new,
                old,
                reference,
                values["advantages"].reshape(2, 4),
                mask,
                weights=weights,
                clip_high=case["clip_high"],
                ratio_cap=case["ratio_cap"],
                importance=case["importance"],
                kl_coefficient=case["kl_coefficient"],
            )[0]

        value, gradient = jax.value_and_grad(loss)(new)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.reshape(8, 6), case["gradient"], atol=1e-6)


def test_groups_left_out_give_their_weight_to_the_rest(rng):
    mask = jnp.asarray(np.arange(5) < rng.integers(1, 6, (3, 4))[..., None])
    kept = jnp.array([True, False, True])
    for kind in ("sample", "token", "constant"):
        found = token_weights(mask, normalization=kind, groups=kept)
        assert not np.asarray(found[1]).any()
        alone = token_weights(mask[kept], normalization=kind)
        np.testing.assert_allclose(found[kept], alone, rtol=1e-6)
    nothing = token_weights(mask, groups=jnp.zeros(3, bool))
    assert not np.asarray(nothing).any()


def test_estimates_of_the_divergence_agree_on_average():
    """Means over the policy itself against the definition, value and gradient."""
    logits = jnp.array([0.3, -0.8, 0.5, 0.1])
    other = jax.nn.log_softmax(jnp.array([0.1, -0.5, 0.4, 0.3]))

    def exact(logits):
        policy = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(policy) * (policy - other))

    def mean(logits, kind):
        policy = jax.nn.log_softmax(logits)
        chance = jax.lax.stop_gradient(jnp.exp(policy))
        return jnp.sum(chance * divergence(other - policy, kind))

    truth, slope = jax.value_and_grad(exact)(logits)
    for kind, tolerance in (("k1", 1e-6), ("k3", 1e-6), ("k2", 2e-3)):
        assert math.isclose(mean(logits, kind), truth, abs_tol=tolerance), kind
    # As losses k1 and k2 have the gradient of the divergence; k3 has that of the opposite one.
    for kind in ("k1", "k2"):
        np.testing.assert_allclose(jax.grad(mean)(logits, kind), slope, atol=1e-6)


def test_a_constant_weight_does_not_depend_on_the_longest_sample():
    mask = jnp.arange(12)[None] < jnp.array([[5], [3]])
    whole = token_weights(mask[None], normalization="constant")
    cut = token_weights(mask[None, :, :5], normalization="constant", budget=12)
    np.testing.assert_array_equal(cut, whole[..., :5])
    assert float(cut[0, 0, 0]) == pytest.approx(1 / 24)
    for kind in ("sample", "token"):
        alike = [token_weights(mask[None], normalization=kind, budget=x) for x in (None, 12)]
        np.testing.assert_array_equal(*alike)
