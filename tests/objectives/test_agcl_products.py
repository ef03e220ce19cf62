"""Vectors as products of bfloat16 parts: errors, the loss built of them, and a GPU's program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.agcl_kernels.products import chosen_precision, product
from afmrl_jax.objectives.bm25 import Bm25Statistics, Bm25Terms
from afmrl_jax.parallel.mesh import make_mesh

COUNT, SIZE, VOCAB = 24, 16, 40
FORMS = {"kept": (10, 12), "tiled": (10, 7), "ring": (2, 3), "gathered": (3, 2)}


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    yield
    jax.clear_caches()


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("precision", "most"), [("float32", 3e-7), ("bf16_x3", 1e-6)])
def test_cosines_against_float64(rng, precision, most) -> None:
    queries, candidates = unit(rng, 64, 1536), unit(rng, 96, 1536)
    found = np.asarray(product(jnp.asarray(queries), jnp.asarray(candidates), (1, 1), precision))
    error = np.abs(found - queries.astype(np.float64) @ candidates.astype(np.float64).T).max()
    # One product of bfloat16 is off by 3e-4.
    assert error < most


def test_equal_vectors_are_nearly_one(rng) -> None:
    vectors = jnp.asarray(unit(rng, 64, 1536))
    found = jnp.diagonal(product(vectors, vectors, (1, 1), "bf16_x3"))
    np.testing.assert_allclose(found, 1.0, atol=1e-5)


def batch(rng):
    queries = unit(rng, COUNT, SIZE)
    candidates = queries + 2.0 * unit(rng, COUNT, SIZE)
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    texts = [jnp.asarray(rng.integers(-1, VOCAB, (COUNT, 5), np.int32)) for _ in range(2)]
    statistics = Bm25Statistics(
        jnp.asarray(rng.uniform(0.5, 3.0, VOCAB), jnp.float32), jnp.float32(4)
    )
    ids = jnp.asarray(rng.integers(0, 20, COUNT), jnp.int32)
    return jnp.asarray(queries), jnp.asarray(candidates), Bm25Terms(statistics, *texts), ids


def value_and_gradients(queries, candidates, terms, ids, **options):
    def loss(queries, candidates, temperature):
        return agcl_loss(queries, candidates, terms, ids, temperature=temperature, **options)[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return run(queries, candidates, jnp.float32(0.05))


def test_value_and_gradient_equal_the_exact_twin(rng) -> None:
    """On one device and, for `ring` and `gathered`, on eight."""
    data, settings = batch(rng), {"gamma": 0.3, "agreement_rho": 0.9}
    expected, exact = value_and_gradients(*data, form="dense", **settings)
    assert expected > 0.5
    settings["vector_precision"] = "bf16_x3"
    for form, tile in FORMS.items():
        mesh = make_mesh() if form in ("ring", "gathered") else None
        found, gradients = value_and_gradients(*data, form=form, tile=tile, mesh=mesh, **settings)
        np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=form)
        for one, two in zip(gradients, exact, strict=True):
            scale = float(np.abs(two).max())
            np.testing.assert_allclose(one, two, atol=1e-4 * scale, err_msg=form)


def test_a_cpu_multiplies_exactly_unless_told_otherwise(rng) -> None:
    data = batch(rng)
    auto, exact, parts = (
        value_and_gradients(*data, form="tiled", vector_precision=x)[1][0]
        for x in ("auto", "float32", "bf16_x3")
    )
    np.testing.assert_array_equal(auto, exact)
    assert np.any(auto != parts)


def test_an_unknown_precision_is_refused(unchecked) -> None:
    with pytest.raises(ValueError, match="not in 'float16'"):
        chosen_precision("float16")


@pytest.mark.parametrize("form", ["kept", "tiled"])
def test_the_program_of_a_gpu_has_no_slow_product(form, rng, on_a_gpu) -> None:
    """No product in float32 outside of the matrix units, and none over the vocabulary."""
    data = batch(rng)

    def loss(queries, candidates, terms, ids):
        return agcl_loss(queries, candidates, terms, ids, form=form, delta=0.1)[0]

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*data)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [x for x in program.splitlines() if "dot_general" in x]
    assert len(products) == (3 if form == "kept" else 4)
    for line in products:
        assert "num_primitive_operations = 3" in line
        assert "HIGHEST" not in line
        assert f"{VOCAB + 1}x" not in line
