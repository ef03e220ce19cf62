"""The streamed forms of AGCL against the dense twin, on one device and on eight.

Sizes are divided neither by tiles nor by devices, so every form has padding.
"""

import math
import re
from functools import lru_cache

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.agcl_kernels import forms
from afmrl_jax.objectives.bm25 import Bm25Terms, fit_bm25
from afmrl_jax.parallel.mesh import make_mesh

QUERIES, FURTHER, SIZE, VOCAB = 18, 9, 5, 12
OPTIONS = {
    "pair": {},
    "product-exact": {"positives": "product", "bm25_reverse": True},
    "product-one-way": {"positives": "product", "symmetric": False},
}
FORMS = {"kept": (7, 5), "tiled": (5, 7), "ring": (2, 3), "gathered": (3, 2)}
EXAMPLES = {"max_examples": 6, "deadline": None, "derandomize": True, "database": None}
OFF = 1e9
"""A margin or share that nothing reaches: the rule is compiled, and off."""


def batch_of(seed: int, spread: float, products: int, kind=np.float64) -> dict[str, jax.Array]:
    """Noisy pairs and hard negatives, with attributes and products that repeat."""
    rng = np.random.default_rng(seed)
    columns = QUERIES + FURTHER
    queries = rng.normal(size=(QUERIES, SIZE))
    near = queries[rng.integers(0, QUERIES, FURTHER)]
    candidates = np.concatenate([queries, near]) + spread * rng.normal(size=(columns, SIZE))
    texts = [rng.integers(-1, VOCAB + 2, (n, a), np.int32) for n, a in ((QUERIES, 4), (columns, 6))]
    texts[0][1], texts[1][2] = -1, -1  # Texts without a term.
    statistics = fit_bm25(texts[1], VOCAB)
    statistics = statistics._replace(
        idf=np.asarray(statistics.idf, kind), average_length=kind(statistics.average_length)
    )
    ids = rng.integers(0, products, columns).astype(np.int32)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates))
    vectors = [np.asarray(x, kind) for x in unit]
    found = dict(zip(("queries", "candidates"), vectors, strict=True))
    found |= {"bm25": Bm25Terms(statistics, *texts), "product_ids": ids[:QUERIES]}
    found |= {"candidate_product_ids": ids}
    return jax.tree.map(jnp.asarray, found)


@lru_cache
def compiled(form: str, name: str):
    """Value, metrics and gradients by both sides and tau; rules are arguments."""
    mesh = make_mesh() if form in ("ring", "gathered") else None

    def loss(queries, candidates, temperature, batch, rules):
        return agcl_loss(
            queries,
            candidates,
            batch["bm25"],
            batch["product_ids"],
            **{k: v for k, v in batch.items() if k == "candidate_product_ids"},
            temperature=temperature,
            **rules,
            **OPTIONS[name],
            form=form,
            tile=FORMS.get(form),
            mesh=mesh,
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def evaluate(form: str, name: str, batch, temperature: float, rules):
    rest = {k: v for k, v in batch.items() if k not in ("queries", "candidates")}
    kind = batch["queries"].dtype
    rules = {k: jnp.asarray(v, kind) for k, v in rules.items()}
    vectors = batch["queries"], batch["candidates"]
    return compiled(form, name)(*vectors, jnp.asarray(temperature, kind), rest, rules)


def assert_close(found, expected, tolerance: float) -> None:
    """Relative to the largest number of an array; metrics one by one."""
    (loss, metrics), gradients = found
    (expected_loss, expected_metrics), expected_gradients = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=tolerance, atol=tolerance * 1e-3)
    assert metrics.keys() == expected_metrics.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(
            value, expected_metrics[key], rtol=tolerance, atol=tolerance, err_msg=key
        )
    for one, two in zip(gradients, expected_gradients, strict=True):
        assert np.all(np.isfinite(one))
        scale = max(float(np.abs(two).max()), 1e-12)
        np.testing.assert_allclose(one / scale, two / scale, rtol=0, atol=tolerance)


SETTINGS = st.fixed_dictionaries(
    {
        "gamma": st.floats(0, 2),
        "delta": st.sampled_from([-0.05, 0.0, 0.1, 0.4, OFF]),
        "agreement_rho": st.sampled_from([0.3, 0.8, 1.0, OFF]),
        "agreement_epsilon": st.floats(0, 0.5),
    }
)


@pytest.mark.parametrize("name", OPTIONS)
@settings(**EXAMPLES)
@given(
    seed=st.integers(0, 2**16),
    spread=st.floats(0.1, 1.5),
    products=st.sampled_from([1, 9, 40]),
    temperature=st.sampled_from([0.005, 0.05, 0.5]),
    rules=SETTINGS,
)
def test_every_form_equals_the_dense_twin_in_float64(
    name, seed, spread, products, temperature, rules
) -> None:
    with jax.enable_x64(True):
        batch = batch_of(seed, spread, products)
        expected = evaluate("dense", name, batch, temperature, rules)
        assert expected[0][0].dtype == jnp.float64
        for form in FORMS:
            found = evaluate(form, name, batch, temperature, rules)
            assert found[0][0].dtype == jnp.float64
            assert_close(found, expected, 1e-6)


RULES = {"gamma": 0.5, "delta": 0.1, "agreement_rho": 0.8, "agreement_epsilon": 0.3}


@pytest.mark.parametrize("form", FORMS)
def test_no_overflow_at_a_low_temperature_in_float32(form) -> None:
    batch = batch_of(3, 1.5, 40, np.float32)
    found = evaluate(form, "pair", batch, 0.005, RULES | {"delta": OFF})
    assert found[0][0].dtype == jnp.float32
    # Some pairs score far above the positive: e^(1 / 0.005) would overflow.
    assert float(found[0][0]) > 20
    assert_close(found, evaluate("dense", "pair", batch, 0.005, RULES | {"delta": OFF}), 2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_negatives_cost_nothing(form) -> None:
    batch = batch_of(0, 0.5, 1, np.float32)
    (loss, metrics), gradients = evaluate(form, "pair", batch, 0.005, RULES)
    assert float(loss) == 0.0
    assert not any(np.any(x) for x in gradients)
    assert float(metrics["masked"]) == float(metrics["accuracy"]) == 1.0
    assert float(metrics["hardest_negative"]) == 0.0


def test_bfloat16_vectors_are_accumulated_in_float32() -> None:
    batch = batch_of(1, 0.5, 40, np.float32)
    names = ("queries", "candidates")
    half = batch | {k: batch[k].astype(jnp.bfloat16) for k in names}
    wide = batch | {k: half[k].astype(jnp.float32) for k in names}

    def run(form, batch):
        vectors = {k: batch[k] for k in names}
        rest = {k: v for k, v in batch.items() if k not in names}
        mesh = make_mesh() if form in ("ring", "gathered") else None

        def loss(v):
            return agcl_loss(**v, **rest, form=form, mesh=mesh)[0]

        return jax.jit(jax.value_and_grad(loss))(vectors)

    expected, exact = run("dense", wide)
    for form in FORMS:
        loss, gradient = run(form, half)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, expected, rtol=1e-6, err_msg=form)
        for name in names:
            assert gradient[name].dtype == jnp.bfloat16
            rounded = exact[name].astype(jnp.bfloat16).astype(jnp.float32)
            np.testing.assert_allclose(
                gradient[name].astype(jnp.float32), rounded, rtol=0.02, atol=1e-5, err_msg=form
            )


def test_several_positives_by_hand() -> None:
    """Query 0 has two positives and one negative; query 1 one and two."""
    queries = jnp.eye(2)
    candidates = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    ids = jnp.array([0, 1, 0], jnp.int32)
    for form in ("dense", "tiled"):
        loss, metrics = agcl_loss(
            queries,
            candidates,
            None,
            ids[:2],
            candidate_product_ids=ids,
            temperature=1.0,
            symmetric=False,
            positives="product",
            form=form,
        )
        first = np.log(np.exp([1.0, 0.0, 0.6]).sum()) - (1.0 + 0.6) / 2
        second = np.log(np.exp([0.0, 1.0, 0.8]).sum()) - 1.0
        np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)
        assert float(metrics["masked"]) == 0.0
        # A positive is no negative: the hardest are 0.0 and 0.8.
        np.testing.assert_allclose(metrics["hardest_negative"], 0.4, rtol=1e-6)


def test_no_program_holds_a_table_of_all_pairs() -> None:
    count, size = 96, 8

    def text(form, tile) -> str:
        def loss(q, c, t, i):
            return agcl_loss(q, c, Bm25Terms(statistics, t, t), i, form=form, tile=tile, delta=0.1)

        shapes = [jax.ShapeDtypeStruct((count, size), jnp.float32)] * 2
        shapes += [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((count, 4), (count,))]
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return run.lower(*shapes).compile().as_text()

    statistics = fit_bm25(np.arange(20).reshape(5, 4), 20)
    assert largest_array(text("dense", None)) >= count * count
    # Not under another shape either: the most is each text's terms against one another, [96 4 4].
    assert largest_array(text("tiled", (16, 24))) <= count * 4 * 4


def largest_array(program: str) -> int:
    """Numbers in the largest array of a compiled program's text."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|s32|u32|s8|u8|pred|s64)\[([0-9,]+)\]", program)
    return max(math.prod(int(n) for n in x.split(",")) for x in shapes)


def test_memory_is_that_of_tiles() -> None:
    count = 2048

    def temp(form) -> int:
        def loss(q, c, i):
            return agcl_loss(q, c, None, i, form=form, tile=(128, 128), delta=0.1)[0]

        shapes = [jax.ShapeDtypeStruct((count, 32), jnp.float32)] * 2
        shapes.append(jax.ShapeDtypeStruct((count,), jnp.int32))
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temp("dense") > 20 * temp("tiled")
    assert temp("dense") > 2 * temp("kept")


@pytest.mark.parametrize(
    ("most", "found", "other"),
    [(2**28, "all-gather", "collective-permute"), (0, "collective-permute", "all-gather")],
)
def test_auto_follows_the_mesh_and_the_size(monkeypatch, most, found, other) -> None:
    monkeypatch.setattr(forms, "GATHER_BYTES", most)
    mesh = make_mesh()
    batch = batch_of(0, 0.5, 40, np.float32)
    rows = NamedSharding(mesh, P("data"))
    queries = jax.device_put(batch["queries"][:16], rows)
    candidates = jax.device_put(batch["candidates"][:16], rows)
    ids = jax.device_put(jnp.arange(16, dtype=jnp.int32), rows)

    def loss(q, c, i):
        return agcl_loss(q, c, None, i)[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    with jax.set_mesh(mesh):
        value, gradients = run(queries, candidates, ids)
        program = run.lower(queries, candidates, ids).compile().as_text()
    assert found in program
    assert other not in program
    alone = run(*(jnp.asarray(np.asarray(x)) for x in (queries, candidates, ids)))
    np.testing.assert_allclose(value, alone[0], rtol=1e-6)
    for one, eight in zip(alone[1], gradients, strict=True):
        assert eight.sharding.spec == P("data")
        np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_had_is_refused(unchecked) -> None:
    batch = batch_of(0, 0.5, 40, np.float32)
    sides = batch["queries"], batch["candidates"]
    ids = {"product_ids": batch["product_ids"]}
    both = ids | {"candidate_product_ids": batch["candidate_product_ids"]}
    table = jnp.zeros((QUERIES, QUERIES + FURTHER))
    with pytest.raises(ValueError, match="candidate_products"):
        agcl_loss(*sides, None, **ids)
    with pytest.raises(ValueError, match="pass `Bm25Terms` instead"):
        agcl_loss(*sides, table, **both, form="tiled")
    with pytest.raises(ValueError, match="needs a mesh"):
        agcl_loss(*sides, None, **both, form="ring")
    with pytest.raises(ValueError, match="not 'pallas'"):
        agcl_loss(*sides, None, **both, form="pallas")
    with pytest.raises(ValueError, match="need terms"):
        agcl_loss(*sides, table, **both, bm25_reverse=True)
    with pytest.raises(ValueError, match="temperature above 0"):
        agcl_loss(*sides, None, **both, temperature=0.0)
    terms = batch["bm25"]._replace(query=batch["bm25"].query[1:])
    with pytest.raises(ValueError, match="texts of queries"):
        agcl_loss(*sides, terms, **both)
