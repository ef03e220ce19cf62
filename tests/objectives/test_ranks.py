"""Where positives stand: counting against sorting, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.objectives import ranks as module
from afmrl_jax.objectives.ranks import rank_positives, rank_positives_dense
from afmrl_jax.parallel.mesh import make_mesh

GALLERY = 48


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def problem(rng):
    """21 queries, among them listings of the gallery; products of one to many listings; ties."""
    gallery = unit(rng.normal(size=(GALLERY, 6)))
    products = rng.integers(0, 12, GALLERY)
    gallery[7], gallery[9] = gallery[3], gallery[3]
    query = unit(gallery[:21] + 0.3 * rng.normal(size=(21, 6)))
    query[3] = gallery[3]
    places = [np.flatnonzero(products == products[i]) for i in range(21)]
    places[5] = places[5][places[5] == 5]
    positives = np.full((21, max(map(len, places))), -1, np.int32)
    for row, found in zip(positives, places, strict=True):
        row[: len(found)] = found
    own = np.arange(21, dtype=np.int32)
    own[20] = -1
    return query, gallery, positives, own


def by_sorting(query, gallery, positives, own):
    """The published definition: walk down the list, in which negatives win ties."""
    best, every = [], []
    for row, (q, found, self_place) in enumerate(zip(query, positives, own, strict=True)):
        scores = np.asarray(jnp.dot(gallery, q, precision="highest"))
        rest = [j for j in range(len(gallery)) if j != self_place]
        wanted = [int(p) for p in found if p >= 0 and p != self_place]
        order = sorted(rest, key=lambda j: (-scores[j], wanted.index(j) + 1 if j in wanted else 0))
        at = {j: n for n, j in enumerate(order, 1)}
        every.append(
            [at.get(int(p), len(gallery) + 1) if p >= 0 else len(gallery) + 1 for p in found]
        )
        first = min((at[p] for p in wanted), default=len(gallery) + 1)
        best.append(first)
        del row
    return best, every


def test_ranks_equal_sorting_with_ties_and_several_positives(problem):
    best, every = by_sorting(*problem)
    found = rank_positives(*map(jnp.asarray, problem), every=True, negatives=3)
    assert found.rank.tolist() == best
    assert found.ranks.tolist() == every


@pytest.mark.parametrize("block", [4, 64])
def test_blocks_equal_the_dense_twin(problem, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    arrays = tuple(map(jnp.asarray, problem))
    found = rank_positives(*arrays, every=True, negatives=3)
    twin = rank_positives_dense(*arrays, negatives=3)
    assert found.rank.tolist() == twin.rank.tolist()
    assert found.ranks.tolist() == twin.ranks.tolist()
    np.testing.assert_allclose(found.margin, twin.margin, atol=1e-6)


def test_larger_blocks_on_a_device_equal_the_dense_twin(problem, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "DEVICE_BLOCK", 16)
    arrays = tuple(map(jnp.asarray, problem))

    def program() -> str:
        return str(jax.make_jaxpr(lambda *x: rank_positives(*x))(*arrays))

    assert f"f32[4,{GALLERY}]" in program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert f"f32[16,{GALLERY}]" in program()
    found = jax.jit(lambda *x: rank_positives(*x, every=True, negatives=3))(*arrays)
    twin = rank_positives_dense(*arrays, negatives=3)
    assert found.rank.tolist() == twin.rank.tolist()
    assert found.ranks.tolist() == twin.ranks.tolist()
    np.testing.assert_allclose(found.margin, twin.margin, atol=1e-6)
    # A gallery so large that its scores would fill the memory.
    monkeypatch.setattr(module, "DEVICE_SCORES", 10 * GALLERY)
    assert f"f32[10,{GALLERY}]" in program()


def test_only_what_is_asked_for_is_computed(problem):
    found = rank_positives(*map(jnp.asarray, problem))
    assert found.ranks is None
    assert found.margin is None


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("filling", [0, 16])
def test_a_gallery_on_eight_devices_is_counted_the_same(problem, data, model, filling):
    query, gallery, positives, own = map(jnp.asarray, problem)
    twin = rank_positives_dense(query, gallery, positives, own, negatives=3)
    mesh = make_mesh(data, model)
    padded = jnp.pad(gallery, ((0, filling), (0, 0)))
    padded = jax.device_put(padded, NamedSharding(mesh, P(("data", "model"))))
    with jax.set_mesh(mesh):
        found = jax.jit(rank_positives, static_argnames=("size", "every", "negatives"))(
            query, padded, positives, own, size=GALLERY, every=True, negatives=3
        )
    assert found.rank.tolist() == twin.rank.tolist()
    assert found.ranks.tolist() == twin.ranks.tolist()
    np.testing.assert_allclose(found.margin, twin.margin, atol=1e-6)


def test_a_product_never_holds_all_scores(problem):
    """Memory of 4096 queries is that of a block of them."""
    shape = jax.ShapeDtypeStruct
    arrays = (
        shape((4096, 16), jnp.float32),
        shape((5000, 16), jnp.float32),
        shape((4096, 4), jnp.int32),
        shape((4096,), jnp.int32),
    )
    compiled = jax.jit(rank_positives).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 3 * module.BLOCK * 5000


def test_a_tie_counts_against_the_query():
    gallery = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = rank_positives(gallery[:1], gallery, jnp.array([[0]]), jnp.array([-1]))
    assert found.rank.tolist() == [2]


def test_a_score_that_is_no_number_counts_against_the_query():
    gallery = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0]])
    found = rank_positives(gallery[:1], gallery, jnp.array([[0]]), jnp.array([-1]), negatives=1)
    assert found.rank.tolist() == [2]
    assert np.isnan(found.margin[0])


def test_a_bfloat16_gallery_ranks_what_bfloat16_scores(problem):
    query, gallery, positives, own = map(jnp.asarray, problem)
    short = gallery.astype(jnp.bfloat16)
    found = rank_positives(query, short, positives, own)
    assert found.rank.tolist() == rank_positives_dense(query, short, positives, own).rank.tolist()
