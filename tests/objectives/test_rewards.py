"""Rewards by counting against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.objectives.rewards import (
    apply_malformed,
    margin_reward,
    positive_rank,
    recall_reward,
    reciprocal_rank_reward,
)
from afmrl_jax.parallel.mesh import make_mesh


@pytest.fixture
def problem(rng):
    gallery = rng.normal(size=(24, 6)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    products = rng.integers(0, 8, 24)
    query = gallery[:8] + 0.3 * rng.normal(size=(8, 6)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    relevant = products[:8, None] == products[None]
    exclude = np.arange(8)[:, None] == np.arange(24)[None]
    return query, gallery, relevant, exclude


def sorted_ranks(query, gallery, relevant, exclude):
    out = []
    for scores, same, own in zip(query @ gallery.T, relevant, exclude, strict=True):
        rest = [(s, ok) for s, ok, gone in zip(scores, same, own, strict=True) if not gone]
        found = [n for n, (_, ok) in enumerate(sorted(rest, key=lambda x: -x[0]), 1) if ok]
        # Rank among negatives: positives before it do not push the best positive back.
        out.append(found[0] if found else len(gallery) + 1)
    return out


def test_rank_by_counting_equals_rank_by_sorting(problem):
    assert positive_rank(*map(jnp.asarray, problem)).tolist() == sorted_ranks(*problem)


def test_rank_is_the_same_with_the_gallery_on_eight_devices(problem):
    mesh = make_mesh()
    query, gallery, relevant, exclude = map(jnp.asarray, problem)
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    found = jax.jit(positive_rank)(
        query,
        jax.device_put(gallery, rows),
        jax.device_put(relevant, columns),
        jax.device_put(exclude, columns),
    )
    assert found.tolist() == sorted_ranks(*problem)


def test_a_tie_counts_against_the_query():
    gallery = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    relevant, nothing = jnp.array([[True, False, False]]), jnp.zeros((1, 3), bool)
    assert positive_rank(gallery[:1], gallery, relevant, nothing).tolist() == [2]


def test_rewards_of_ranks():
    ranks = jnp.array([1, 2, 5], jnp.int32)
    assert recall_reward(ranks, 2).tolist() == [1, 1, 0]
    np.testing.assert_allclose(reciprocal_rank_reward(ranks), [1, 0.5, 0.2])


def test_margin_is_best_positive_less_mean_of_hardest_negatives(problem):
    query, gallery, relevant, exclude = problem
    found = margin_reward(*map(jnp.asarray, problem), 3)
    for row, value in enumerate(np.asarray(found)):
        scores = query[row] @ gallery.T
        positive = relevant[row] & ~exclude[row]
        best = scores[positive].max() if positive.any() else -1.0
        negatives = np.sort(scores[~relevant[row] & ~exclude[row]])[-3:]
        np.testing.assert_allclose(value, best - negatives.mean(), rtol=1e-5)


def test_malformed_lists_get_the_penalty():
    found = apply_malformed(jnp.array([1.0, 0.5]), jnp.array([True, False]), -0.1)
    np.testing.assert_allclose(found, [-0.1, 0.5])
