"""Adapters of one linear map against a dense twin, and the ranks and scales of a stack's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import LoraConfig, LoraMap, OptimizerConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.adapters import (
    Adapter,
    Adapters,
    column_norms,
    merged_kernel,
    scaled,
    tower_path,
    tower_target,
)
from afmrl_jax.models.qwen_vl.layers import Keys, Linear
from afmrl_jax.models.qwen_vl.mixed_precision import stretched
from afmrl_jax.testing import TOWER_TARGETS, tiny_config
from afmrl_jax.training.state import gradient_step, initial_state, make_optimizer

Q = "model/layers/self_attn/q_proj"


def drawn(rng, *shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)


@pytest.fixture
def parts(rng):
    """x, kernel, both factors, magnitudes, bias and what the outputs are weighed by."""
    sizes = [(2, 5, 6), (6, 4), (6, 3), (3, 4), (4,), (4,), (2, 5, 4)]
    return [drawn(rng, *x) for x in sizes]


def linear(kernel, a, b, magnitude, bias):
    one = Linear(6, 4, bias=True, keys=Keys(jax.random.key(0)), adapter=Adapter((3,), (1.0,), True))
    for parameter, value in (
        (one.kernel, kernel),
        (one.lora_a, a),
        (one.lora_b, b),
        (one.lora_magnitude, magnitude),
        (one.bias, bias),
    ):
        parameter[...] = value
    return one


def test_dora_is_the_kernel_whose_columns_have_the_learned_lengths(parts):
    x, kernel, a, b, magnitude, bias, _ = parts
    whole = np.asarray(kernel) + np.asarray(a) @ np.asarray(b)
    expected = np.asarray(x) @ (whole / np.linalg.norm(whole, axis=0) * np.asarray(magnitude))
    one = linear(kernel, a, b, magnitude, bias)
    np.testing.assert_allclose(one(x), expected + np.asarray(bias), atol=1e-5)
    flat = one.affine(jnp.float32)(x.reshape(-1, 6))
    np.testing.assert_allclose(flat.reshape(2, 5, 4), one(x), atol=1e-5)
    merged = merged_kernel(kernel, a, b, magnitude)
    np.testing.assert_allclose(column_norms(merged), np.abs(magnitude), rtol=1e-5)


def test_doras_gradient_takes_the_lengths_of_columns_for_constants(parts):
    *own, weight = parts

    def ours(x, kernel, a, b, magnitude, bias):
        return jnp.sum(weight * linear(kernel, a, b, magnitude, bias)(x))

    def dense(x, kernel, a, b, magnitude, bias):
        whole = kernel + jnp.dot(a, b)
        norms = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(whole**2, axis=0)))
        return jnp.sum(weight * (jnp.dot(x, whole * (magnitude / norms)[None]) + bias[None, None]))

    every = tuple(range(6))
    found, expected = jax.grad(ours, every)(*own), jax.grad(dense, every)(*own)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    with_norms = jax.grad(lambda a: ours(own[0], own[1], a, *own[3:]) * 1.0)(own[2])

    def differentiated(a):
        whole = own[1] + jnp.dot(a, own[3])
        norms = jnp.sqrt(jnp.sum(whole**2, axis=0))
        return jnp.sum(weight * jnp.dot(own[0], whole * (own[4] / norms)[None]))

    assert np.abs(with_norms - jax.grad(differentiated)(own[2])).max() > 0.1


def test_gradients_of_magnitudes_are_summed_in_float32(rng):
    x, gain = drawn(rng, 4096, 3, dtype=jnp.bfloat16), drawn(rng, 3)
    one = lambda x, gain: jnp.sum(stretched(x, gain).astype(jnp.float32))  # noqa: E731
    by_x, by_gain = jax.grad(one, (0, 1))(x, gain)
    assert (by_x.dtype, by_gain.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(by_gain, np.asarray(x, np.float64).sum(axis=0), rtol=1e-4)
    # Where gains do not learn, only x has a gradient.
    np.testing.assert_array_equal(jax.grad(one)(x, gain), by_x)


def test_a_column_of_zeros_gives_no_nan(parts):
    x, kernel, a, b, magnitude, bias, _ = parts
    kernel, b = kernel.at[:, 0].set(0.0), b.at[:, 0].set(0.0)
    out = linear(kernel, a, b, magnitude.at[0].set(0.0), bias)(x)
    np.testing.assert_array_equal(out[..., 0], jnp.full((2, 5), bias[0]))


def test_scales():
    plain, stabilized = LoraConfig(16, 64.0), LoraConfig(16, 64.0, rank_stabilized=True)
    assert (plain.scale, stabilized.scale) == (4.0, 16.0)
    maps = (LoraMap(Q, (4, 16), (8.0, 64.0)),)
    assert Adapters(plain, maps)(Q) == Adapter((4, 16), (2.0, 4.0), False)
    assert Adapters(stabilized, maps)(Q).scales == (4.0, 16.0)
    assert Adapters(plain, maps).below("model").below("layers")("mlp/up_proj") is None
    factor = Adapters(plain, maps)(Q).factor()
    assert factor.shape == (2, 16, 1)
    assert (factor[0, :4] == 2).all()
    assert not factor[0, 4:].any()
    assert (factor[1] == 4).all()
    even = Adapters(plain, (LoraMap(Q, (4, 4), (8.0, 8.0)),))(Q)
    assert even.factor() == 2.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoraMap(Q, (), ()),
        lambda: LoraMap(Q, (1,), (1.0, 2.0)),
        lambda: LoraMap(Q, (0,), (1.0,)),
        lambda: LoraMap(Q, (1,), (-1.0,)),
        lambda: LoraConfig(targets=()),
        lambda: LoraConfig(rank=0),
    ],
)
def test_adapters_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigError, match="lora"):
        make()


@pytest.mark.parametrize("family", TOWER_TARGETS)
def test_every_map_of_a_tower_has_a_name(family):
    kernels = [
        x.removesuffix("/kernel")
        for x in Architecture.of(tiny_config(family)).shapes
        if x.startswith("visual_tower/") and x.endswith("/kernel") and "patch_embed" not in x
    ]
    assert {tower_target(x) for x in kernels} == set(TOWER_TARGETS[family])
    assert all(tower_path(tower_target(x)) == x for x in kernels)
    lora = LoraConfig(targets=(), tower_targets=TOWER_TARGETS[family])
    shapes = Architecture.of(tiny_config(family, lora=lora)).shapes
    assert [x for x in shapes if x.endswith("lora_a")] == [f"{x}/lora_a" for x in kernels]


def test_a_map_that_a_tower_lacks_is_named_with_those_that_it_has():
    for wrong in ("mlp.linear_fc1", "qkv", "patch_embed.proj", ""):
        config = tiny_config(lora=LoraConfig(tower_targets=("attn.qkv", wrong)))
        with pytest.raises(ConfigError, match=r"tower_targets .*qwen2_vl has .*merger\.mlp\.0"):
            Architecture.of(config)


def test_what_a_layer_of_a_smaller_rank_lacks_stays_zero(rng):
    """Through weight decay, and whatever the other places learn."""
    lora = LoraConfig(3, 6.0, ("q_proj",))
    config = tiny_config(lora=lora)
    config = dataclasses.replace(config, lora_maps=(LoraMap(Q, (1, 3), (6.0, 6.0)),))
    start = {f"{Q}/lora_a": drawn(rng, 2, 32, 3), f"{Q}/lora_b": drawn(rng, 2, 3, 32)}
    start[f"{Q}/lora_a"] = start[f"{Q}/lora_a"].at[0, :, 1:].set(0.0)
    start[f"{Q}/lora_b"] = start[f"{Q}/lora_b"].at[0, 1:].set(0.0)
    x, weight = drawn(rng, 7, 32), drawn(rng, 7, 32)

    def loss(params):
        ready = scaled(config, params)
        out = sum(
            jnp.dot(jnp.dot(x, ready[f"{Q}/lora_a"][i]), ready[f"{Q}/lora_b"][i]) for i in (0, 1)
        )
        return jnp.sum((out - weight) ** 2), {}

    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, weight_decay=0.1), 10)
    state = initial_state(start, optimizer)
    for _ in range(5):
        state = gradient_step(state, loss, optimizer)[0]
    for name, value in state.params.items():
        padding = value[0, :, 1:] if name.endswith("a") else value[0, 1:]
        assert not np.any(padding), name
        assert np.abs(value - start[name]).max() > 0.01
