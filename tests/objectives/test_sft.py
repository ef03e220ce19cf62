"""Cross entropy against scikit-learn's log loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from afmrl_jax.objectives.sft import sft_loss, sft_loss_of_hidden
from afmrl_jax.parallel.mesh import make_mesh


def test_loss_equals_log_loss_over_counted_tokens(rng):
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (2, 5)).astype(np.int32)
    mask = rng.random((2, 5)) < 0.6
    loss, metrics = sft_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(mask))
    wide = np.exp(logits.astype(float))
    probabilities = wide / wide.sum(-1, keepdims=True)
    expected = log_loss(targets[mask], probabilities[mask], labels=np.arange(7))
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
    right = (logits.argmax(-1) == targets)[mask].mean()
    np.testing.assert_allclose(float(metrics["token_accuracy"]), right, rtol=1e-6)


def test_weights_are_scikit_learns_sample_weights(rng):
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (2, 5)).astype(np.int32)
    weights = rng.uniform(0.1, 2, (2, 5)).astype(np.float32)
    mask = jnp.ones((2, 5), bool)
    loss, _ = sft_loss(jnp.asarray(logits), jnp.asarray(targets), mask, jnp.asarray(weights))
    wide = np.exp(logits.astype(float)).reshape(10, 7)
    expected = log_loss(
        targets.ravel(),
        wide / wide.sum(-1, keepdims=True),
        sample_weight=weights.ravel(),
        labels=np.arange(7),
    )
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_positions_that_do_not_count_get_no_gradient(rng):
    logits = jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32)
    targets = jnp.array([[1, -100, 2]], jnp.int32)
    mask = jnp.array([[True, False, True]])
    gradient = jax.grad(lambda x: sft_loss(x, targets, mask)[0])(logits)
    np.testing.assert_array_equal(gradient[0, 1], 0)
    assert np.abs(gradient[0, 0]).max() > 0


def test_batch_without_counted_tokens_is_zero():
    loss, _ = sft_loss(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), bool))
    assert float(loss) == 0


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("at_once", [1, 3, 5, 8, None])
def test_logits_in_parts_give_the_loss_and_gradient_of_all(rng, at_once, devices):
    hidden = jnp.asarray(rng.normal(size=(8, 8, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, 11)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (8, 8)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.1, 2, (8, 8)), jnp.float32)
    mask = jnp.asarray(rng.random((8, 8)) < 0.6)

    def whole(hidden, kernel):
        return sft_loss(hidden @ kernel, targets, mask, weights)

    def in_parts(hidden, kernel):
        return sft_loss_of_hidden(
            hidden, lambda x: x @ kernel, targets, mask, weights, at_once=at_once
        )

    def both(function):
        return jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(hidden, kernel)

    with jax.set_mesh(make_mesh(devices)):
        found = jax.jit(both, static_argnums=0)(in_parts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, both(whole)
    )
