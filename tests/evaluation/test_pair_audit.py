"""What an audit counts is what the loss does, and what it shows is what it says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.evaluation.pair_audit import (
    Masking,
    Pairs,
    examples,
    masked,
    reasons,
    summarise,
    thresholds,
    weights,
)
from afmrl_jax.objectives.agcl import agcl_loss

BOTH = Masking(0.3, 0.1, 0.9, 0.1, 0.1)
SETTINGS = {
    "both": BOTH,
    "margin": dataclasses.replace(BOTH, agreement_rho=None),
    "agreement": dataclasses.replace(BOTH, delta=None),
    "infonce": Masking(0.0, None, None, 0.1, 0.05),
}
Q, C, N = 12, 20, 40


def drawn(seed):
    """A batch with hard negatives, in which some products occur twice or have a second id."""
    rng = np.random.default_rng(seed)
    identity = np.arange(N) // 2
    truth = np.array([f"t{n // 4}" if n < 16 else f"t{n // 2}" for n in range(N)])
    queries = 2 * rng.permutation(N // 2)[:Q]
    candidates = np.concatenate([queries + 1, rng.integers(0, N, C - Q)])
    vectors = rng.normal(size=(N // 2, 8))[identity] + 0.6 * rng.normal(size=(N, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    bm25 = np.float32(rng.gamma(1.0, 2.0, (Q, C)) * (rng.random((Q, C)) < 0.8))
    return queries, candidates, vectors, bm25, identity, truth


def pairs_of(masking, seed=0):
    queries, candidates, vectors, bm25, identity, truth = drawn(seed)
    scores = vectors[queries] @ vectors[candidates].T
    return Pairs.of(seed, queries, candidates, scores, bm25, identity, truth, masking)


@pytest.mark.parametrize("name", SETTINGS)
def test_rates_are_those_of_the_loss(name):
    masking = SETTINGS[name]
    queries, candidates, vectors, bm25, identity, _ = drawn(0)
    _, metrics = agcl_loss(
        jnp.asarray(vectors[queries]),
        jnp.asarray(vectors[candidates]),
        jnp.asarray(bm25),
        jnp.asarray(identity[queries], jnp.int32),
        candidate_product_ids=jnp.asarray(identity[candidates], jnp.int32),
        **dataclasses.asdict(masking),
    )
    found = summarise(pairs_of(masking), masking)
    assert found["pairs"] == Q * C - Q
    assert found["masked"]["share"] == pytest.approx(float(metrics["masked"]), abs=1e-6)
    for reason, row in found["reasons"].items():
        assert row["share"] == pytest.approx(float(metrics[f"masked_by_{reason}"]), abs=1e-6)
    if name == "both":
        assert min(row["pairs"] for row in found["reasons"].values()) > 0
    assert sum(found["histogram"]["left"]) == found["left"]["pairs"]
    assert found["left"]["pairs"] + found["masked"]["pairs"] == found["pairs"]


def test_shares_of_the_denominator_add_up():
    queries, candidates, vectors, bm25, identity, _ = drawn(0)
    pairs = pairs_of(BOTH)
    count = len(pairs)
    shown = examples(pairs, BOTH, np.arange(N), count)
    left, compared = shown["heaviest"], 0
    for row, query in enumerate(queries):
        own = {x["candidate"]: x["denominator_share"] for x in left if x["query"] == query}
        s = vectors[query] @ vectors[candidates].T
        logit = s / BOTH.temperature + np.tanh(BOTH.gamma * bm25[row])
        out = identity[candidates] == identity[query]
        out |= s > s[row] + BOTH.delta
        out |= (bm25[row] >= 0.9 * bm25[row, row]) & (bm25[row, row] > 0) & (s > s[row] - 0.1)
        out[row] = False
        share = np.where(out, 0, np.exp(logit))
        share /= share.sum()
        for place, candidate in enumerate(candidates):
            # Of two listings that meet in several pairs one pair is shown.
            if candidate in own and (candidates == candidate).sum() == 1:
                assert own[candidate] == pytest.approx(share[place], rel=1e-4)
                compared += 1
    assert compared > 50


def test_truth_counts_second_ids_that_training_does_not_know():
    pairs = pairs_of(SETTINGS["infonce"])
    found = summarise(pairs, SETTINGS["infonce"])
    unknown = pairs.true & ~pairs.same
    assert 0 < found["unknown_false_negatives"] == unknown.sum()
    # Only ids mask, so all that is unknown is left in, and all that is masked is right.
    assert found["left"]["false_negatives"] == unknown.sum()
    assert found["masked"]["precision"] == 1.0
    assert found["masked"]["found"] == 0


def test_other_settings_are_counted_as_if_they_were_set():
    pairs = pairs_of(BOTH)
    found = summarise(pairs, BOTH)
    for name, rows, reason in (
        ("delta", found["deltas"], "margin"),
        ("agreement_rho", found["rhos"], "agreement"),
    ):
        assert [row["value"] for row in rows if row["own"]] == [getattr(BOTH, name)]
        for row in rows:
            other = dataclasses.replace(BOTH, **{name: row["value"]})
            chosen = reasons(pairs, other)[reason] & ~pairs.same
            assert row["pairs"] == chosen.sum()
            assert row["found"] == (chosen & pairs.true).sum()
    counts = [row["pairs"] for row in found["deltas"]]
    assert counts == sorted(counts, reverse=True)
    spread = [row["ninetieth"] for row in found["gammas"]]
    assert spread == sorted(spread)
    assert found["gammas"][0] | {"value": 0.0, "median": 1.0} == found["gammas"][0]


def test_lists_hold_what_their_names_say():
    parts = [pairs_of(BOTH, seed) for seed in range(4)]
    pairs = Pairs.join(parts)
    products = np.arange(N) // 2
    shown = examples(pairs, BOTH, products, 5)
    limit, out = thresholds(pairs, BOTH), masked(pairs, BOTH)
    learned = out & (pairs.score > limit)
    for name in ("nearest", "farthest"):
        assert all({*x["reasons"]} & {"margin", "agreement"} for x in shown[name])
        assert all(x["score"] > x["threshold"] for x in shown[name])
    excess = [x["score"] - x["threshold"] for x in shown["farthest"]]
    assert excess == sorted(excess, reverse=True)
    assert excess[0] == pytest.approx(max((pairs.score - limit)[learned & ~pairs.same]))
    near = [x["score"] - x["threshold"] for x in shown["nearest"]]
    assert near == sorted(near)
    assert near[0] == pytest.approx(min((pairs.score - limit)[learned & ~pairs.same]))
    assert all(not x["reasons"] and x["score"] <= x["threshold"] for x in shown["spared"])
    heaviest = [x["weight"] for x in shown["heaviest"]]
    assert heaviest == sorted(heaviest, reverse=True)
    assert heaviest[0] == pytest.approx(weights(pairs, BOTH.gamma)[~out].max())
    for rows in shown.values():
        met = [tuple(sorted((products[x["query"]], products[x["candidate"]]))) for x in rows]
        assert len(met) == len({*met}) == 5
