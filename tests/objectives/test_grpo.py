"""GRPO's pieces against numbers worked by hand and a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.objectives.grpo import dead_groups, group_advantages, grpo_loss

NONE = np.zeros((1, 4), bool)


def advantages(rewards, malformed=NONE, **options):
    values = jnp.array([rewards], jnp.float32)
    return np.asarray(group_advantages(values, jnp.asarray(malformed), **options))[0]


def test_advantage_is_reward_less_mean_over_deviation():
    # Mean 0.25, deviation sqrt(0.1875) = 0.4330.
    expected = np.sqrt([3, 1 / 3, 1 / 3, 1 / 3]) * [1, -1, -1, -1]
    np.testing.assert_allclose(advantages([1, 0, 0, 0]), expected, rtol=1e-6)


def test_advantage_without_normalising_is_the_distance_to_the_mean():
    np.testing.assert_allclose(
        advantages([1, 0, 0, 0], normalise=False), [0.75, -0.25, -0.25, -0.25]
    )


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
