"""AGCL against a literal float64 twin, in value and gradient, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.parallel.mesh import make_mesh

SETTINGS = {
    "infonce": {"gamma": 0.0},
    "paper": {"gamma": 1.0, "delta": 0.0},
    "shipped": {"gamma": 0.1, "delta": 0.3},
    "agreement": {"gamma": 0.1, "agreement_rho": 0.8, "agreement_epsilon": 0.4},
    "everything": {
        "gamma": 0.3,
        "delta": 0.02,
        "agreement_rho": 0.9,
        "agreement_epsilon": 0.3,
        "temperature": 0.2,
    },
}


def agcl_loss_reference(
    queries,
    candidates,
    bm25,
    product_ids,
    *,
    temperature=0.05,
    gamma=0.1,
    delta=None,
    agreement_rho=None,
    agreement_epsilon=0.1,
    symmetric=True,
    constants=None,
):
    """The definition, pair by pair, in NumPy float64.

    `constants` are (scores, bm25) from which weights and masks are made, for finite differences:
    they must not move with the vectors.
    """
    scores = queries @ candidates.T
    fixed, bm25 = (scores, bm25) if constants is None else constants
    options = (product_ids, temperature, gamma, delta, agreement_rho, agreement_epsilon)
    loss = _reference_direction(scores, fixed, bm25, *options)
    if symmetric:
        loss = (loss + _reference_direction(scores.T, fixed.T, bm25.T, *options)) / 2
    return loss


def _reference_direction(s, fixed, bm25, products, tau, gamma, delta, rho, epsilon):
    losses = []
    for i in range(len(s)):
        weight = np.exp(1 + np.tanh(gamma * bm25[i]))
        terms = [weight[i] * np.exp(s[i, i] / tau)]
        for j in range(len(s)):
            same = products[i] == products[j]
            above = delta is not None and fixed[i, j] > fixed[i, i] + delta
            agrees = (
                rho is not None
                and bm25[i, i] > 0
                and bm25[i, j] >= rho * bm25[i, i]
                and fixed[i, j] > fixed[i, i] - epsilon
            )
            if j != i and not (same or above or agrees):
                terms.append(weight[j] * np.exp(s[i, j] / tau))
        losses.append(-np.log(terms[0] / np.sum(terms)))
    return np.mean(losses)


def pairs(count: int = 8, size: int = 5, seed: int = 0):
    """Noisy pairs, BM25 that is large on the diagonal, and one product that occurs twice."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(count, size))
    candidates = queries + 0.7 * rng.normal(size=(count, size))
    bm25 = np.abs(rng.normal(size=(count, count))) * 3 + 4 * np.eye(count)
    bm25[2, 3] = bm25[2, 2]
    bm25[4] = 0.0  # A query without attributes.
    products = np.arange(count)
    products[5] = products[1]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates)]
    return (*unit, bm25, products)


def on_device(queries, candidates, bm25, products):
    floats = [jnp.asarray(x, jnp.float32) for x in (queries, candidates, bm25)]
    return (*floats, jnp.asarray(products, jnp.int32))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_value_equals_the_definition(name, symmetric) -> None:
    for seed in range(3):
        data = pairs(seed=seed)
        expected = agcl_loss_reference(*data, **SETTINGS[name], symmetric=symmetric)
        loss, metrics = agcl_loss(*on_device(*data), **SETTINGS[name], symmetric=symmetric)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_array_equal(metrics["loss"], loss)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_equals_finite_differences_with_constant_weights_and_mask(name) -> None:
    queries, candidates, bm25, products = pairs(count=6, size=3)
    constants = (queries @ candidates.T, bm25)

    def value(q, c):
        return agcl_loss_reference(q, c, bm25, products, **SETTINGS[name], constants=constants)

    gradients = jax.grad(lambda *x: agcl_loss(*x, **SETTINGS[name])[0], argnums=(0, 1))(
        *on_device(queries, candidates, bm25, products)
    )
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            moved = []
            for sign in (1, -1):
                arrays = [queries.copy(), candidates.copy()]
                arrays[which][place] += sign * step
                moved.append(value(*arrays))
            slope = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(gradient[place], slope, rtol=1e-3, atol=2e-5)


def test_settings_reach_every_mask() -> None:
    """The twin would agree on nothing masked as well; here each reason does occur."""
    metrics = agcl_loss(*on_device(*pairs()), **SETTINGS["everything"])[1]
    for reason in ("identity", "margin", "agreement"):
        assert float(metrics[f"masked_by_{reason}"]) > 0


def test_bm25_carries_no_gradient() -> None:
    queries, candidates, bm25, products = on_device(*pairs())
    gradient = jax.grad(lambda b: agcl_loss(queries, candidates, b, products, gamma=1.0)[0])(bm25)
    assert not np.any(gradient)


def test_infonce_is_plain_cross_entropy() -> None:
    queries, candidates, bm25, _ = on_device(*pairs())
    products = jnp.arange(8, dtype=jnp.int32)
    loss, _ = agcl_loss(queries, candidates, bm25, products, gamma=0.0, symmetric=False)
    logits = jnp.dot(queries, candidates.T, precision=jax.lax.Precision.HIGHEST) / 0.05
    expected = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_masked_pairs_get_no_gradient() -> None:
    """A product that occurs twice: its other candidate neither attracts nor repels."""
    queries, candidates, bm25, products = on_device(*pairs())

    def loss(q1, c5):
        return agcl_loss(
            queries.at[1].set(q1),
            candidates.at[5].set(c5),
            bm25,
            products,
            gamma=0.0,
            symmetric=False,
        )[0]

    without = jax.grad(loss, argnums=0)(queries[1], candidates[5])
    other = jax.grad(loss, argnums=0)(queries[1], -candidates[5])
    np.testing.assert_allclose(without, other, atol=1e-7)


def test_all_negatives_masked_gives_zero_loss_and_finite_gradient() -> None:
    queries, candidates, bm25, _ = on_device(*pairs())
    same = jnp.zeros(8, jnp.int32)
    value, gradient = jax.value_and_grad(lambda q: agcl_loss(q, candidates, bm25, same)[0])(queries)
    assert float(value) == 0.0
    assert not np.any(gradient)
    metrics = agcl_loss(queries, candidates, bm25, same)[1]
    assert float(metrics["masked"]) == 1.0
    assert float(metrics["accuracy"]) == 1.0
    assert float(metrics["hardest_negative"]) == 0.0


def test_metrics_by_hand() -> None:
    queries = jnp.eye(3, dtype=jnp.float32)
    candidates = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, 0.8, 0.6]])
    # Scores: [1 0 0], [0 .6 .8], [0 .8 .6].
    bm25 = jnp.zeros((3, 3)).at[1, 1].set(2.0).at[1, 2].set(1.9)
    products = jnp.array([0, 1, 2], jnp.int32)
    metrics = agcl_loss(queries, candidates, bm25, products, gamma=0.0)[1]
    assert float(metrics["accuracy"]) == pytest.approx(1 / 3)
    assert float(metrics["positive_similarity"]) == pytest.approx(2.2 / 3)
    assert float(metrics["hardest_negative"]) == pytest.approx(1.6 / 3)
    assert float(metrics["mean_weight"]) == pytest.approx(np.e)
    assert float(metrics["masked"]) == 0.0
    metrics = agcl_loss(queries, candidates, bm25, products, delta=0.1)[1]
    assert float(metrics["masked_by_margin"]) == pytest.approx(2 / 6)
    assert float(metrics["accuracy"]) == 1.0
    metrics = agcl_loss(queries, candidates, bm25, products, agreement_rho=0.9)[1]
    assert float(metrics["masked_by_agreement"]) == pytest.approx(1 / 6)
    assert float(metrics["masked"]) == pytest.approx(1 / 6)


def test_reverse_bm25_is_used() -> None:
    queries, candidates, bm25, products = on_device(*pairs())
    forward = agcl_loss(queries, candidates, bm25, products, symmetric=False)[0]
    backward = agcl_loss(candidates, queries, 2 * bm25.T, products, symmetric=False)[0]
    both = agcl_loss(queries, candidates, bm25, products, bm25_reverse=2 * bm25.T)[0]
    np.testing.assert_allclose(both, (forward + backward) / 2, rtol=1e-6)


def test_half_precision_vectors_are_accumulated_in_float32() -> None:
    queries, candidates, bm25, products = on_device(*pairs())
    half = queries.astype(jnp.bfloat16), candidates.astype(jnp.bfloat16)
    loss, _ = agcl_loss(*half, bm25, products)
    wide = agcl_loss(half[0].astype(jnp.float32), half[1].astype(jnp.float32), bm25, products)[0]
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, wide)


def test_shapes_that_are_no_batch_are_refused(unchecked) -> None:
    queries, candidates, bm25, products = on_device(*pairs())
    with pytest.raises(ValueError, match="hard negatives follow"):
        agcl_loss(queries, candidates[:4], bm25, products)
    with pytest.raises(ValueError, match="products"):
        agcl_loss(queries, candidates, bm25, products[:4])
    with pytest.raises(ValueError, match="bm25_reverse"):
        agcl_loss(queries, candidates, bm25, products, bm25_reverse=bm25[:4])


@pytest.mark.parametrize("name", SETTINGS)
def test_eight_devices_give_the_same_value_and_gradient(name) -> None:
    data = on_device(*pairs(count=16))
    mesh = make_mesh()
    assert mesh.shape["data"] == 8

    def value_and_gradient(q, c, b, p):
        return jax.value_and_grad(
            lambda q, c: agcl_loss(q, c, b, p, **SETTINGS[name]), argnums=(0, 1), has_aux=True
        )(q, c)

    rows = NamedSharding(mesh, P("data"))
    sharded = tuple(jax.device_put(x, rows) for x in data)
    (loss, metrics), gradients = jax.jit(value_and_gradient)(*data)
    (loss8, metrics8), gradients8 = jax.jit(
        value_and_gradient, in_shardings=rows, out_shardings=(None, rows)
    )(*sharded)
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    for key in metrics:
        np.testing.assert_allclose(metrics8[key], metrics[key], rtol=1e-5)
    for one, eight in zip(gradients, gradients8, strict=True):
        assert eight.sharding.spec == P("data")
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_vectors_that_are_no_unit_vectors_are_refused(side):
    arrays = list(on_device(*pairs()))
    arrays[side] = arrays[side].at[3].multiply(2.0)
    with pytest.raises(
        ValueError, match=r"1 of the \d+ (queries|candidates) are not unit .* number 3"
    ):
        agcl_loss(*arrays)
