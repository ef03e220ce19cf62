"""Both indexes behind one interface, on clustered vectors."""

import shutil

import numpy as np
import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.index import load_index
from afmrl_jax.retrieval.scann_index import ScannIndex


def clustered(count, rng):
    centres = rng.normal(size=(count // 10, 16))
    vectors = centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors(rng):
    return clustered(300, rng)


@pytest.fixture
def ids(vectors):
    return [f"listing {n}" for n in range(len(vectors))]


KINDS = [ExactIndex, ScannIndex]


def test_exact_search_is_a_sort(vectors, ids, monkeypatch):
    monkeypatch.setattr("afmrl_jax.retrieval.exact.BLOCK", 70)  # Several blocks and a rest.
    found = ExactIndex(ids, vectors).search(vectors[:9], 7)
    scores = vectors[:9] @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(found.positions, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, axis=1), atol=1e-6)
    assert found.ids[3][0] == "listing 3"


def test_equal_scores_come_in_the_order_of_the_index(monkeypatch):
    monkeypatch.setattr("afmrl_jax.retrieval.exact.BLOCK", 4)
    vectors = np.ones((10, 2), np.float32)
    found = ExactIndex([str(n) for n in range(10)], vectors).search(vectors[:1], 6)
    assert found.positions[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_small_scann_index_is_exact(vectors, ids):
    exact = ExactIndex(ids, vectors).search(vectors, 5)
    found = ScannIndex(ids, vectors).search(vectors, 5)
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-5)


def test_large_scann_index_finds_most(rng):
    vectors = clustered(4000, rng)
    ids = [str(n) for n in range(4000)]
    exact = ExactIndex(ids, vectors).search(vectors[:300], 10).positions
    found = ScannIndex(ids, vectors).search(vectors[:300], 10).positions
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shared) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_works_from_another_place(kind, vectors, ids, tmp_path):
    index = kind(ids, vectors, "embedder 1")
    index.save(tmp_path / "index")
    shutil.move(tmp_path / "index", tmp_path / "moved")
    again = load_index(tmp_path / "moved", embedder="embedder 1")
    assert again.kind == kind.kind
    one, two = index.search(vectors[:5], 4), again.search(vectors[:5], 4)
    assert one.ids == two.ids
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_vectors_than_asked_for(kind, vectors, ids):
    found = kind(ids[:3], vectors[:3]).search(vectors[:2], 10)
    assert found.positions.shape == (2, 3)


def test_vectors_of_another_embedder_are_refused(vectors, ids, tmp_path):
    ExactIndex(ids, vectors, "one").save(tmp_path / "index")
    with pytest.raises(RunError, match="embed the catalogue again"):
        load_index(tmp_path / "index", embedder="two")
    with pytest.raises(RunError, match="afmrl embed"):
        load_index(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vectors_are_refused(kind, vectors, ids):
    with pytest.raises(RunError, match="one vector an id"):
        kind(ids[:-1], vectors)
    with pytest.raises(RunError, match="unique"):
        kind(["same", *ids[:-2], "same"], vectors)
    broken = vectors.copy()
    broken[4, 2] = np.nan
    with pytest.raises(RunError, match="not finite"):
        kind(ids, broken)
