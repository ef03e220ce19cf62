"""Scores of tokens by chunks of the vocabulary against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.models.token_logprobs import Head, token_scores, token_scores_dense
from afmrl_jax.parallel.mesh import make_mesh

SIZES = {"rows": 5, "vocab": 48, "dim": 8}


def problem(rng, table, dtype=jnp.float32):
    shape = (SIZES["vocab"], SIZES["dim"])
    weights = rng.normal(size=shape if table else shape[::-1])
    hidden = rng.normal(size=(2, SIZES["rows"], SIZES["dim"]))
    tokens = rng.integers(0, SIZES["vocab"], (2, SIZES["rows"]))
    tokens[0, :2] = 0, SIZES["vocab"] - 1
    return (
        jnp.asarray(hidden, dtype),
        Head(jnp.asarray(weights, dtype), table),
        jnp.asarray(tokens, jnp.int32),
    )


def objective(function, tokens, mix, **options):
    """A number on which both results bear."""

    def value(hidden, weights, table):
        logprob, entropy = function(hidden, Head(weights, table), tokens, **options)
        return jnp.sum(logprob * mix) + jnp.sum(jnp.sin(entropy) * mix)

    return value


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(
    ("chunk", "temperature"), [(1, 0.7), (7, 0.7), (7, 1.0), (16, 0.7), (48, 1.0), (1000, 0.7)]
)
def test_values_and_gradients_equal_the_dense_twin(rng, table, chunk, temperature):
    with jax.enable_x64():
        hidden, head, tokens = problem(rng, table, jnp.float64)
        mix = jnp.asarray(rng.normal(size=tokens.shape))
        own = token_scores(hidden, head, tokens, chunk=chunk, temperature=temperature)
        twin = token_scores_dense(hidden, head, tokens, temperature=temperature)
        for left, right in zip(own, twin, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
        gradients = [
            jax.grad(objective(f, tokens, mix, temperature=temperature, **more), (0, 1))(
                hidden, head.weights, head.table
            )
            for f, more in ((token_scores, {"chunk": chunk}), (token_scores_dense, {}))
        ]
        for left, right in zip(*gradients, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4)])
def test_a_vocabulary_split_over_devices_gives_the_same(rng, table, data, model):
    hidden, head, tokens = problem(rng, table)
    mix = jnp.asarray(rng.normal(size=tokens.shape), jnp.float32)
    twin = jax.value_and_grad(objective(token_scores_dense, tokens, mix), (0, 1))(
        hidden, head.weights, table
    )
    with jax.set_mesh(make_mesh(data, model)):
        value = objective(token_scores, tokens, mix, chunk=16)
        found = jax.jit(jax.value_and_grad(value, (0, 1)), static_argnums=2)(
            hidden, head.weights, table
        )
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(twin), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_logits_never_exist_whole(rng):
    rows, vocab = 64, 20_000
    hidden = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    weights = jax.ShapeDtypeStruct((vocab, 8), jnp.float32)
    tokens = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def temporary(function, **options):
        def value(hidden, weights, tokens):
            return jnp.sum(function(hidden, Head(weights, True), tokens, **options)[0])

        lowered = jax.jit(jax.grad(value, (0, 1))).lower(hidden, weights, tokens)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(token_scores, chunk=1000) < temporary(token_scores_dense) / 4


def test_bfloat16_scores_are_those_of_bfloat16_logits(rng):
    hidden, head, tokens = problem(rng, True, jnp.bfloat16)
    own, twin = (f(hidden, head, tokens) for f in (token_scores, token_scores_dense))
    for left, right in zip(own, twin, strict=True):
        assert left.dtype == jnp.float32
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_bfloat16_gradients_exist_and_are_near_those_of_the_dense_twin(rng, table, chunk):
    hidden, head, tokens = problem(rng, table, jnp.bfloat16)
    mix = jnp.asarray(rng.normal(size=tokens.shape), jnp.float32)
    own, twin = (
        jax.jit(jax.grad(objective(f, tokens, mix, **more), (0, 1)), static_argnums=2)(
            hidden, head.weights, table
        )
        for f, more in ((token_scores, {"chunk": chunk}), (token_scores_dense, {}))
    )
    for left, right in zip(own, twin, strict=True):
        assert left.dtype == jnp.bfloat16
        left, right = (np.asarray(x, np.float32) for x in (left, right))
        # bfloat16 has 8 bits: one rounding of the largest entry.
        np.testing.assert_allclose(left, right, atol=2**-7 * np.abs(right).max())
