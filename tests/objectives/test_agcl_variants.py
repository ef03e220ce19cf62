"""Weights that harden, and masks by a teacher and an oracle: every form against the dense twin, on
one device and on eight, and the dense twin against the definition pair by pair.

Sizes are divided neither by tiles nor by devices, so every form has padding.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.objectives.agcl import Teacher, agcl_loss
from afmrl_jax.objectives.agcl_kernels.rules import Weighting
from afmrl_jax.objectives.bm25 import Bm25Statistics, Bm25Terms, bm25_scores, fit_bm25
from afmrl_jax.parallel.mesh import make_mesh
from tests.objectives.test_agcl_kernels import largest_array

QUERIES, FURTHER, SIZE, TAUGHT, VOCAB = 11, 6, 5, 4, 12
FORMS = {"kept": (7, 5), "tiled": (5, 7), "ring": (2, 3), "gathered": (1, 2)}
NEUTRAL = Weighting(positive="neutral")
RELATIVE = Weighting(positive="neutral", normalized=True)
TOGETHER = Weighting(positive="neutral", pairs="agreeing", normalized=True)
AGREEMENT = {"agreement_rho": 0.6, "agreement_epsilon": 0.3}
CASES = {
    "neutral": {"weighting": NEUTRAL},
    "relative": {"weighting": RELATIVE, "delta": 0.1},
    "softening": {"weighting": RELATIVE, "gamma": -0.5},
    "teacher": {"gamma": 0.0, "teacher": True},
    "oracle": {"gamma": 0.0, "oracle": True},
    "together": {"weighting": TOGETHER, **AGREEMENT, "bm25_reverse": True},
    "own-agreeing": {"weighting": Weighting(pairs="agreeing"), **AGREEMENT, "symmetric": False},
    "everything": {
        "weighting": TOGETHER,
        **AGREEMENT,
        "delta": 0.2,
        "teacher": True,
        "oracle": True,
        "placebo": True,
        "bm25_reverse": True,
    },
    "positives": {
        "weighting": NEUTRAL,
        "positives": "product",
        "teacher": True,
        "oracle": True,
        "placebo": True,
    },
}
STREAMED = ("own-agreeing", "everything", "positives")
"""Those that together have every part of the rule, on either side."""


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@lru_cache
def batch_of(seed: int, kind=np.float64) -> dict:
    """Noisy pairs and hard negatives with lists, products and families that repeat."""
    rng = np.random.default_rng(seed)
    columns = QUERIES + FURTHER
    queries = rng.normal(size=(QUERIES, SIZE))
    near = queries[rng.integers(0, QUERIES, FURTHER)]
    candidates = np.concatenate([queries, near]) + 0.6 * rng.normal(size=(columns, SIZE))
    taught = rng.normal(size=(columns, TAUGHT))
    texts = [rng.integers(-1, VOCAB + 2, (n, a), np.int32) for n, a in ((QUERIES, 4), (columns, 6))]
    texts[1][:QUERIES, :3] = texts[0][:, :3]  # Lists of one product agree in part.
    texts[0][1] = -1  # A list without a term.
    statistics = fit_bm25(texts[1], VOCAB)
    statistics = statistics._replace(
        idf=np.asarray(statistics.idf, kind), average_length=kind(statistics.average_length)
    )
    found = {
        "queries": unit(queries),
        "candidates": unit(candidates),
        "teacher": tuple(unit(x) for x in (taught[:QUERIES] + 0.4, taught)),
    }
    found = jax.tree.map(lambda x: x.astype(kind), found)
    found |= {"bm25": Bm25Terms(statistics, *texts)}
    found |= {
        x: rng.integers(0, n, columns, np.int32) for x, n in (("products", 14), ("oracle", 7))
    }
    return found


def options_of(case: dict, batch: dict) -> dict:
    """Arguments of `agcl_loss`."""
    given = {"gamma": 0.5, **case}
    count = len(batch["queries"])
    if given.pop("teacher", False):
        given["teacher"] = Teacher(*batch["teacher"], 0.8)
    if given.pop("oracle", False):
        given["oracle_ids"] = (batch["oracle"][:count], batch["oracle"])
    if given.pop("placebo", False):
        given["placebo_key"] = jax.random.key(3)
    return given | {"candidate_product_ids": batch["products"]}


def evaluate(form: str, name: str, batch: dict):
    """Value, metrics and gradients by both sides and tau."""
    mesh = make_mesh() if form in ("ring", "gathered") else None
    kind = batch["queries"].dtype

    def loss(queries, candidates, temperature, batch):
        return agcl_loss(
            queries,
            candidates,
            batch["bm25"],
            batch["products"][:QUERIES],
            temperature=temperature,
            **options_of(CASES[name], batch),
            form=form,
            tile=FORMS.get(form),
            mesh=mesh,
        )

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    batch = jax.tree.map(jnp.asarray, batch)
    return run(batch["queries"], batch["candidates"], jnp.asarray(0.1, kind), batch)


@pytest.mark.parametrize("name", STREAMED)
def test_every_form_equals_the_dense_twin_in_float64(name) -> None:
    with jax.enable_x64(True):
        batch = batch_of(5)
        (loss, metrics), gradients = evaluate("dense", name, batch)
        for mask in ("teacher", "oracle"):
            assert (f"masked_by_{mask}" in metrics) == (mask in CASES[name])
        for form in FORMS:
            (found, other), slopes = evaluate(form, name, batch)
            np.testing.assert_allclose(found, loss, rtol=1e-9, err_msg=form)
            assert other.keys() == metrics.keys()
            for key, value in metrics.items():
                np.testing.assert_allclose(
                    other[key], value, rtol=1e-9, atol=1e-12, err_msg=f"{form} {key}"
                )
            for one, two in zip(slopes, gradients, strict=True):
                scale = float(np.abs(two).max())
                assert scale > 0
                np.testing.assert_allclose(one, two, rtol=0, atol=1e-8 * scale, err_msg=form)


def weight_of(weighting: Weighting, gamma: float, rho: float, b: float, own: float) -> float:
    if weighting.pairs == "agreeing" and not (b >= rho * own and own > 0):
        return np.e
    return np.exp(1 + np.tanh(gamma * b))


def literal(scores, taught, bm25, weighed, products, oracle, given) -> float:
    """Mean loss of rows against columns, pair by pair; candidate i belongs to query i."""
    weighting, losses = given.get("weighting", Weighting()), []
    gamma, rho = given.get("gamma", 0.5), given.get("agreement_rho", 0.0)
    for i in range(len(scores)):
        left = []
        for j in range(scores.shape[1]):
            s, own = scores[i, j], scores[i, i]
            agrees = bm25[i, i] > 0 and bm25[i, j] >= rho * bm25[i, i]
            out = products[i] == products[j]
            out |= "delta" in given and s > own + given["delta"]
            near = "agreement_rho" in given and s > own - given["agreement_epsilon"]
            out |= near and agrees
            limit = taught[i, i] - 0.2 * abs(taught[i, i])
            out |= "teacher" in given and taught[i, j] > limit
            out |= "oracle" in given and oracle[i] == oracle[j]
            if j != i and not out:
                left.append(j)
        weights = np.array([weight_of(weighting, gamma, rho, x, bm25[i, i]) for x in weighed[i]])
        positive = weights[i] if weighting.positive == "own" else np.e
        if weighting.normalized:
            weights, positive = weights / weights[left].mean() if left else weights, 1.0
        top = positive * np.exp(scores[i, i] / 0.1)
        losses.append(
            -np.log(top / (top + sum(weights[j] * np.exp(scores[i, j] / 0.1) for j in left)))
        )
    return float(np.mean(losses))


@pytest.mark.parametrize("name", [x for x in CASES if "placebo" not in CASES[x]])
def test_the_dense_twin_is_the_definition(name) -> None:
    given = CASES[name]
    with jax.enable_x64(True):
        batch = batch_of(5)
        (found, _), _ = evaluate("dense", name, batch)
        terms = jax.tree.map(jnp.asarray, batch["bm25"])
        bm25 = np.asarray(bm25_scores(*terms))
        back = np.asarray(bm25_scores(terms.statistics, terms.candidate[:QUERIES], terms.query))
    pairs = np.s_[:, :QUERIES]
    back = back if given.get("bm25_reverse") else bm25[pairs].T
    scores = batch["queries"] @ batch["candidates"].T
    taught = batch["teacher"][0] @ batch["teacher"][1].T
    ids = batch["products"], batch["oracle"], given
    expected = literal(scores, taught, bm25, bm25, *ids)
    if given.get("symmetric", True):
        expected += literal(scores[pairs].T, taught[pairs].T, back, back, *ids)
        expected /= 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def fixed_batch():
    """Three pairs: query 0 shares most with itself, much with 1 and nothing with 2."""
    queries = jnp.eye(3)
    candidates = jnp.asarray([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]])
    bm25 = jnp.asarray([[4.0, 3.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    return queries, candidates, bm25, jnp.arange(3, dtype=jnp.int32)


def pull(weighting: Weighting, gamma: float = 0.2, **options) -> np.ndarray:
    """How hard query 0 is pushed from each candidate, as shares of its loss's gradient."""
    queries, candidates, bm25, ids = fixed_batch()

    def loss(candidates):
        return agcl_loss(
            queries, candidates, bm25, ids, temperature=1.0, gamma=gamma,
            weighting=weighting, symmetric=False, **options,
        )[0]  # fmt: skip

    return 3 * np.asarray(jax.grad(loss)(candidates))[:, 0]


PUBLISHED = {
    "shipped": ({"delta": 0.3}, 0.79482144, 8.785938),
    "paper": ({"gamma": 1.0, "delta": 0.0}, 0.43026805, 5.717403),
    "agreement": ({"delta": 0.1, "agreement_rho": 0.8}, 0.39434859, 6.607924),
    "infonce": ({"gamma": 0.0}, 0.80668342, 8.816198),
}
"""Settings, and what the loss and the sum of its gradient's sizes were before there were any other
weights or masks, at commit b7c03f3."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_variant_the_loss_is_what_it_was(name) -> None:
    given, loss, slope = PUBLISHED[name]
    count = 24
    angles = np.concatenate([np.arange(count) + 1.0, np.arange(count) + 1.2])
    vectors = unit(np.stack([np.sin(angles * k) for k in (0.7, 1.3, 2.1, 2.9)], axis=1))
    queries, candidates = jnp.asarray(vectors, jnp.float32).reshape(2, count, 4)
    places = np.arange(count)[:, None] * 3
    texts = [jnp.asarray((places + np.arange(4) * s) % 11, jnp.int32) for s in (1, 2)]
    idf = jnp.asarray(0.5 + np.arange(11) / 8, jnp.float32)
    terms = Bm25Terms(Bm25Statistics(idf, jnp.float32(4)), *texts)
    ids = jnp.arange(count, dtype=jnp.int32) * 3 // 4

    def value(queries):
        return agcl_loss(queries, candidates, terms, ids, form="tiled", **given)[0]

    found, gradient = jax.jit(jax.value_and_grad(value))(queries)
    # Bit for bit where it was computed; other processors add up in another order.
    np.testing.assert_allclose(found, loss, rtol=5e-7)
    np.testing.assert_allclose(jnp.abs(gradient).sum(), slope, rtol=2e-6)


def test_own_weights_soften_and_neutral_ones_harden() -> None:
    def against_the_positive(*how) -> np.ndarray:
        found = pull(*how)
        return found[1:] / (1 + found[0])

    plain, own, neutral = map(
        against_the_positive,
        *zip((Weighting(), 0.0), (Weighting(), 0.2), (NEUTRAL, 0.2), strict=True),
    )
    assert np.all(own < plain)
    np.testing.assert_allclose(neutral, plain * [np.exp(np.tanh(0.6)), 1], rtol=1e-5)
    # Relative to their mean the easy negative pays for the hard one; below 0 the other way around.
    relative, below = (against_the_positive(RELATIVE, x) for x in (0.2, -0.2))
    assert relative[0] > plain[0]
    assert relative[1] < plain[1]
    assert below[0] < plain[0]
    assert below[1] > plain[1]


def test_agreeing_pairs_leave_when_near_and_weigh_when_far() -> None:
    """Candidate 1 agrees with query 0 (3 of 4), at a cosine of 0.6 to the positive's 1."""
    plain = pull(Weighting(), 0.0)
    together = Weighting(positive="neutral", pairs="agreeing")
    near = pull(together, agreement_rho=0.7, agreement_epsilon=0.5)
    far = pull(together, agreement_rho=0.7, agreement_epsilon=0.3)
    assert near[1] == 0
    assert far[1] > plain[1] > 0
    strict = pull(together, agreement_rho=0.8, agreement_epsilon=0.5)
    np.testing.assert_allclose(strict, plain, rtol=1e-6)


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_the_placebo_permutes_the_weights_of_a_row_among_its_negatives(form) -> None:
    """Equal scores: only the sum of the weights of a row's negatives counts, so nothing changes."""
    batch = batch_of(2, np.float32)
    same = np.tile(unit(np.ones((1, SIZE))).astype(np.float32), (QUERIES + FURTHER, 1))

    def loss(key):
        return agcl_loss(
            same[:QUERIES],
            same,
            jax.tree.map(jnp.asarray, batch["bm25"]),
            np.arange(QUERIES, dtype=np.int32),
            candidate_product_ids=np.arange(QUERIES + FURTHER, dtype=np.int32),
            bm25_reverse=True,
            form=form,
            tile=FORMS.get(form),
            placebo_key=key,
            gamma=0.5,
        )

    (true, metrics), (placebo, others) = (jax.jit(loss)(x) for x in (None, jax.random.key(1)))
    np.testing.assert_allclose(placebo, true, rtol=1e-6)
    np.testing.assert_allclose(others["mean_weight"], metrics["mean_weight"], rtol=1e-6)


def test_the_placebo_moves_weights_and_no_mask() -> None:
    with jax.enable_x64(True):
        batch = batch_of(5)
        batch = jax.tree.map(jnp.asarray, batch)
        found = [
            agcl_loss(
                batch["queries"],
                batch["candidates"],
                batch["bm25"],
                batch["products"][:QUERIES],
                candidate_product_ids=batch["products"],
                gamma=0.5,
                **AGREEMENT,
                placebo_key=key,
            )
            for key in (None, jax.random.key(0), jax.random.key(1))
        ]
    masks = [float(x[1]["masked_by_agreement"]) for x in found]
    assert masks[0] > 0
    assert masks == [masks[0]] * 3
    assert len({round(float(x[0]), 9) for x in found}) == 3


def test_a_teacher_leaves_out_what_comes_near_its_positive() -> None:
    queries, candidates, _, ids = fixed_batch()

    def masked(share, rows, columns):
        teacher = Teacher(*(jnp.asarray(unit(np.array(x))) for x in (rows, columns)), share)
        metrics = agcl_loss(queries, candidates, None, ids, teacher=teacher, symmetric=False)[1]
        return round(6 * float(metrics["masked_by_teacher"]))

    eye = np.eye(3)
    # Candidate 1 is at 0.96 of query 0's positive.
    columns = [[1.0, 0, 0], [0.96, 0.28, 0], [0, 0, 1.0]]
    assert [masked(x, eye, columns) for x in (0.95, 0.97)] == [1, 0]
    # A positive opposite to its query: both others are nearer.
    assert masked(0.95, eye, [[-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]) == 2


@pytest.mark.parametrize("form", ["ring", "tiled"])
def test_no_program_holds_a_table_of_all_pairs(form) -> None:
    count, size = 96, 8
    statistics = fit_bm25(np.arange(20).reshape(5, 4), 20)
    mesh = make_mesh() if form == "ring" else None

    def loss(q, c, t, i, teacher):
        batch = {"queries": q, "teacher": teacher, "oracle": i, "products": i}
        return agcl_loss(
            q, c, Bm25Terms(statistics, t, t), i, form=form, tile=(6, 6), mesh=mesh,
            **options_of(CASES["everything"], batch),
        )  # fmt: skip

    vectors = jax.ShapeDtypeStruct((count, size), jnp.float32)
    shapes = [vectors, vectors]
    shapes += [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((count, 4), (count,))]
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    program = run.lower(*shapes, (vectors, vectors)).compile().as_text()
    # The most is each text's terms against one another.
    assert largest_array(program) <= count * 4 * 4


def test_what_does_not_go_together_is_refused(unchecked) -> None:
    queries, candidates, bm25, ids = fixed_batch()
    arrays = queries, candidates, bm25, ids
    with pytest.raises(ValueError, match="set the positive's weight to 'neutral'"):
        Weighting(normalized=True)
    with pytest.raises(ValueError, match="'own' or 'neutral', not 'none'"):
        Weighting(positive="none")
    with pytest.raises(ValueError, match="'all' or 'agreeing', not 'some'"):
        Weighting(pairs="some")
    with pytest.raises(ValueError, match="say from which share they agree: agreement_rho"):
        agcl_loss(*arrays, weighting=Weighting(pairs="agreeing"))
    with pytest.raises(ValueError, match="take the positives 'pair'"):
        agcl_loss(*arrays, weighting=RELATIVE, positives="product")
    with pytest.raises(ValueError, match="teacher's candidates"):
        agcl_loss(*arrays, teacher=Teacher(queries, candidates[:2]))
    with pytest.raises(ValueError, match="teacher's queries are not unit"):
        agcl_loss(*arrays, teacher=Teacher(2 * queries, candidates))
    with pytest.raises(ValueError, match="oracle_ids of candidates"):
        agcl_loss(*arrays, oracle_ids=(ids, ids[:2]))
