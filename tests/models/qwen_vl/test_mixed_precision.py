"""Narrow activations with wide weights: values of the plain products, gradients summed wide."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.qwen_vl.mixed_precision import biased, product
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place
from afmrl_jax.testing import tiny_config


def plain(x, kernel, bias):
    return jnp.dot(x, kernel.astype(x.dtype)) + bias.astype(x.dtype).reshape(1, 1, -1)


def ours(x, kernel, bias):
    return biased(product(x, kernel), bias)


def drawn(rng, dtype):
    x, kernel, bias = (rng.normal(size=s) for s in ((16, 8, 12), (12, 20), (20,)))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)


@pytest.mark.parametrize("data", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_plain_product(rng, dtype, data):
    given = drawn(rng, dtype)
    weights = jnp.asarray(rng.normal(size=(16, 8, 20)), dtype).astype(jnp.float32)

    def loss(form, *given):
        return jnp.sum(form(*given).astype(jnp.float32) * weights)

    with jax.set_mesh(make_mesh(data, 1)):
        run = jax.jit(lambda *x: ours(rows_over_data(x[0]), *x[1:]))
        values, expected = (np.asarray(f(*given), np.float32) for f in (run, jax.jit(plain)))
        # Other tiles of a product on fewer rows add in another order.
        np.testing.assert_allclose(values, expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)
        grad = lambda form: jax.jit(jax.grad(lambda *x: loss(form, *x), (0, 1, 2)))  # noqa: E731
        found = grad(lambda x, *y: ours(rows_over_data(x), *y))(*given)
    exact = grad(plain)(*(x.astype(jnp.float32) for x in given))
    for own, expected, one in zip(found, exact, given, strict=True):
        assert own.dtype == one.dtype
        # A sum of float32 products of numbers of 8 bits, rounded once to the type of the leaf.
        scale = float(jnp.abs(expected).max())
        limit = 1e-6 if own.dtype == jnp.float32 and dtype == "float32" else 1e-2
        np.testing.assert_allclose(own.astype(jnp.float32), expected, atol=limit * scale, rtol=0)


def test_what_devices_add_up_is_not_rounded():
    x = jnp.ones((8, 1, 1), jnp.bfloat16).at[0].set(256)
    kernel, bias = jnp.ones((1, 1), jnp.float32), jnp.zeros(1, jnp.float32)

    def loss(kernel, bias):
        return jnp.sum(ours(rows_over_data(x), kernel, bias).astype(jnp.float32))

    with jax.set_mesh(make_mesh(8, 1)):
        by_kernel, by_bias = jax.jit(jax.grad(loss, (0, 1)))(kernel, bias)
    # bfloat16 has no 263.
    assert float(by_kernel[0, 0]) == 263
    assert float(by_bias[0]) == 8


def test_devices_exchange_gradients_in_float32(tmp_path):
    """As the partitioner writes it: on a CPU later passes widen whatever is narrow."""
    architecture = Architecture.of(tiny_config("qwen2_vl"), Execution(dtype="bfloat16"))
    mesh = make_mesh(8, 1)
    params = place(architecture.init(0), mesh)
    tokens, mask = jnp.ones((16, 8), jnp.int32), jnp.ones((16, 8), bool)
    positions = jnp.ones((16, 3, 8), jnp.int32)
    # Another program every time: one that the compile cache knows would not be dumped.
    scale = float(np.random.default_rng().random())

    def loss(params):
        model = architecture.bind(params)
        hidden = model.model(model.embed(tokens), positions, mask)
        return scale * jnp.sum(hidden.astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh):
        jax.jit(jax.grad(loss)).lower(params).compile(
            {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd.*"}
        )
    (path,) = tmp_path.glob("*after_spmd-partitioning*")
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* (?:all-reduce|reduce-scatter)\(", path.read_text())
    kernels = [dtype for dtype, shape in found if "," in shape]
    assert len(kernels) >= 14
    assert {dtype for dtype, _ in found} == {"f32"}


def test_a_frozen_kernel_keeps_no_activations():
    """With the rows kept for it, adapters would take the memory of full training."""
    kernel = jnp.ones((64, 64), jnp.float32)

    def through(x):
        return product(x, kernel)

    x = jnp.ones((1024, 64), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(through, x)[1])
    assert all(leaf.size <= kernel.size for leaf in kept)
