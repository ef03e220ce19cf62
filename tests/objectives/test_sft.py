"""Cross entropy against scikit-learn's log loss."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import log_loss

from afmrl_jax.objectives.sft import sft_loss


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
