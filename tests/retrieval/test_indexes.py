"""Both indexes behind one interface, on clustered vectors."""

import json
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.retrieval import exact as exact_index
from afmrl_jax.retrieval import top_k as kernels
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.index import load_index
from afmrl_jax.retrieval.scann import ScannIndex, ScannSettings, recall_of
from afmrl_jax.runtime.hardware import building_for


def clustered(count, rng, dim=16):
    centres = rng.normal(size=(count // 10, dim))
    vectors = centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors(rng):
    return clustered(300, rng)


@pytest.fixture
def ids(vectors):
    return [f"listing {n}" for n in range(len(vectors))]


KINDS = [ExactIndex, ScannIndex]
TREE = ScannSettings(leaves=40, searched=20, hashed=True, reorder=100)
HASHED = ScannSettings(hashed=True, reorder=100)


def by_sorting(vectors, queries, k):
    """Places of the k best, the earlier of equals first."""
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts, chunks and bins so small that a few hundred vectors need several of each."""
    monkeypatch.setattr(exact_index, "PART_BYTES", 16 * 4 * 130)
    monkeypatch.setattr(kernels, "CHUNK", 32)
    monkeypatch.setattr(kernels, "BIN", 2)
    monkeypatch.setattr(kernels, "SLACK", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("held", [None, 0], ids=["held", "streamed"])
def test_exact_search_is_a_sort(vectors, ids, devices, held, small_parts):
    mesh = make_mesh(devices // 2, 2) if devices > 1 else None
    index = ExactIndex(ids, vectors, mesh=mesh, held_bytes=held)
    assert len(index._parts) > 2
    order, scores = by_sorting(vectors, vectors[:9], 7)
    for _ in range(2):  # from the host, then from where the first left them
        found = index.search(vectors[:9], 7)
        np.testing.assert_array_equal(found.positions, order)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)
        assert bool(index._held) is (held is None)
    assert found.ids[3][0] == "listing 3"


@pytest.mark.parametrize("devices", [1, 8])
def test_a_gpu_searches_the_gallery_in_one_part(vectors, ids, devices, small_parts, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh = make_mesh(devices // 2, 2) if devices > 1 else None
    index = ExactIndex(ids, vectors, mesh=mesh, held_bytes=vectors.nbytes + 100)
    streamed = ExactIndex(ids, vectors, mesh=mesh, held_bytes=vectors.nbytes - 1)
    assert (len(index._parts), len(streamed._parts)) == (1, 3)
    queries = np.concatenate([vectors, -vectors])  # More at once than a CPU takes.
    order, scores = by_sorting(vectors, queries, 7)
    for found in (index.search(queries, 7), streamed.search(queries, 7)):
        np.testing.assert_array_equal(found.positions, order)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert index._held
    assert not streamed._held


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_result_are_those_at_the_time(kind, vectors, ids):
    index = kind(ids[:200], vectors[:200])
    found = index.search(vectors[:1], 3)
    index.delete(ids[:1])
    index.add(ids[200:], vectors[200:])
    assert found.ids[0][0] == ids[0]
    assert index.search(vectors[250:251], 1).ids == [[ids[250]]]
    assert index.search(vectors[:0], 3).ids == []


def test_marks_of_deleted_vectors_are_sent_when_they_change(vectors, ids, monkeypatch):
    index, sent = ExactIndex(ids, vectors), []

    def put(array):
        sent.append(array.dtype)
        return jnp.asarray(array)

    monkeypatch.setattr(index, "_put", put)
    for _ in range(3):
        index.search(vectors[:2], 3)
    assert sent == [np.float32, bool]
    index.delete(ids[:1])
    assert index.search(vectors[:1], 1).ids != [ids[:1]]
    index.search(vectors[:1], 1)
    assert sent == [np.float32, bool, bool]


def test_what_is_added_to_a_large_part_is_a_part_of_its_own(vectors, ids, small_parts, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    index = ExactIndex(ids[:200], vectors[:200])
    index.add(ids[200:], vectors[200:])
    assert [len(x) for x in index._parts] == [200, 100]
    order, _ = by_sorting(vectors, vectors[:9], 7)
    np.testing.assert_array_equal(index.search(vectors[:9], 7).positions, order)


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_scores_come_in_the_order_of_the_index(devices, small_parts):
    mesh = make_mesh(devices) if devices > 1 else None
    vectors = np.ones((300, 16), np.float32) / 4
    index = ExactIndex([str(n) for n in range(300)], vectors, mesh=mesh)
    assert index.search(vectors[:1], 40).positions[0].tolist() == list(range(40))


@pytest.mark.parametrize("rows", [64, 4000, 40_000])
@pytest.mark.parametrize("k", [1, 50])
def test_two_stages_find_what_sorting_all_scores_finds(rows, k, rng, monkeypatch):
    half = rng.normal(size=(rows // 2, 24)).astype(np.float32)
    count = kernels.padded_rows(rows)
    gallery = np.zeros((count, 24), np.float32)
    gallery[:rows] = np.concatenate([half, half])  # every score twice
    alive = (np.arange(count) < rows) & (np.arange(count) % 7 != 3)
    queries = half[:5] + 0.1 * rng.normal(size=(5, 24)).astype(np.float32)
    asked = (jnp.asarray(queries), jnp.asarray(gallery), jnp.asarray(alive), min(k, rows // 2))
    two = kernels.top_k_dense(*asked)
    found = [kernels.top_k(*asked)]
    # A GPU looks at few parts at fixed places, or at many in a loop.
    monkeypatch.setattr(kernels, "SCORES", 200_000)
    for parts in (kernels.PARTS, 1):
        monkeypatch.setattr(kernels, "PARTS", parts)
        with building_for("gpu"):
            found.append(kernels.top_k(*asked))
    for one in found:
        np.testing.assert_array_equal(one[1], two[1])
        np.testing.assert_allclose(one[0], two[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [3, 300, 1001])
def test_long_rows_are_sorted_in_groups(count, rng):
    scores = rng.integers(-5, 5, (6, count)).astype(np.float32)
    scores[:, ::3] = -np.inf
    k = min(count, 2)
    one, two = kernels.top_k_of(jnp.asarray(scores), k), jax.lax.top_k(jnp.asarray(scores), k)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_no_array_holds_all_scores(rng):
    rows, queries = kernels.padded_rows(100_000), 64
    shapes = [((queries, 24), jnp.float32), ((rows, 24), jnp.float32), ((rows,), jnp.bool_)]
    asked = [jax.ShapeDtypeStruct(*x) for x in shapes]
    text = jax.jit(kernels.top_k, static_argnums=3).lower(*asked, 10).compile().as_text()
    assert f"[{rows},{queries}]" not in text
    assert f"[{queries},{rows}]" not in text


def test_bfloat16_vectors_are_found_with_scores_of_float32(vectors, ids, tmp_path):
    index = ExactIndex(ids, vectors, dtype="bfloat16")
    rounded = np.asarray(jnp.asarray(vectors, jnp.bfloat16).astype(jnp.float32))
    order, scores = by_sorting(rounded, rounded[:9], 5)
    found = index.search(vectors[:9], 5)
    np.testing.assert_array_equal(found.positions, order)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index").search(vectors[:9], 5)
    np.testing.assert_array_equal(again.scores, found.scores)


def test_small_scann_index_is_exact(vectors, ids):
    exact = ExactIndex(ids, vectors).search(vectors, 5)
    found = ScannIndex(ids, vectors).search(vectors, 5)
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-5)


def test_scann_settings_follow_the_size():
    assert not ScannSettings.of(5000).hashed
    assert ScannSettings.of(50_000) == ScannSettings(hashed=True, reorder=200)
    assert ScannSettings.of(1_000_000).leaves == 1000


@pytest.mark.parametrize("settings", [HASHED, TREE], ids=["hashed", "tree"])
def test_large_scann_index_finds_most(rng, settings):
    vectors = clustered(4000, rng)
    ids = [str(n) for n in range(4000)]
    exact = ExactIndex(ids, vectors).search(vectors[:300], 10).positions
    found = ScannIndex(ids, vectors, settings=settings).search(vectors[:300], 10).positions
    assert recall_of(found, exact) > 0.9


def test_scann_is_tuned_to_a_recall(rng):
    vectors = clustered(4000, rng)
    index = ScannIndex([str(n) for n in range(4000)], vectors, settings=TREE)
    queries, others = vectors[:200] + 0.05, vectors[200:400] + 0.05
    exact = by_sorting(vectors, queries, 10)[0]
    reached = index.tune(queries, exact, 0.95)
    assert reached >= 0.95
    assert index.settings.searched <= 40
    assert recall_of(index.search(others, 10).positions, by_sorting(vectors, others, 10)[0]) > 0.9
    with pytest.raises(RunError, match="no ScaNN setting finds"):
        index.tune(queries, exact, 1.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_works_from_another_place(kind, vectors, ids, tmp_path):
    index = kind(ids, vectors, "embedder 1")
    index.save(tmp_path / "index")
    shutil.move(tmp_path / "index", tmp_path / "moved")
    assert not list((tmp_path / "moved").glob("*.pkl")), "a pickle would run a stranger's code"
    again = load_index(tmp_path / "moved", embedder="embedder 1")
    assert again.kind == kind.kind
    one, two = index.search(vectors[:5], 4), again.search(vectors[:5], 4)
    assert one.ids == two.ids
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)


SETTINGS = [(ExactIndex, {}), (ScannIndex, {}), (ScannIndex, {"settings": TREE})]


@pytest.mark.parametrize(("kind", "how"), SETTINGS, ids=["exact", "scann", "tree"])
def test_adding_and_deleting_are_as_building_anew(kind, how, rng, tmp_path):
    vectors = clustered(3000, rng)
    index = kind([f"a{n}" for n in range(2000)], vectors[:2000], **how)
    index.add([f"a{n}" for n in range(2000, 3000)], vectors[2000:])
    gone = [f"a{n}" for n in range(0, 3000, 3)]
    index.delete(gone)
    index.add(["a0"], vectors[:1])  # an id that was deleted is free again
    assert len(index) == 2001

    def check(index):
        found = index.search(vectors[:600], 5)
        names = {x for row in found.ids for x in row}
        assert not names & set(gone[1:])
        kept = [n for n in range(3000) if n % 3 or not n]
        order = np.array(kept)[by_sorting(vectors[kept], vectors[:600], 5)[0]]
        wanted = [[f"a{n}" for n in row] for row in order]
        shared = [len(set(a) & set(b)) for a, b in zip(found.ids, wanted, strict=True)]
        assert np.mean(shared) / 5 > (0.9 if how else 0.9999)

    check(index)
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index")
    check(again)
    again.delete(["a0"])
    assert again.search(vectors[:1], 1).ids != [["a0"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_change_is_refused_whole(kind, vectors, ids):
    index = kind(ids, vectors)
    with pytest.raises(RunError, match="already holds 'listing 4'; delete it first"):
        index.add(["new", "listing 4"], vectors[:2])
    with pytest.raises(RunError, match="dimension 16, these have 3"):
        index.add(["new"], vectors[:1, :3])
    with pytest.raises(RunError, match="'nobody' is not in the index; nothing was deleted"):
        index.delete(["listing 0", "nobody"])
    with pytest.raises(RunError, match="is repeated"):
        index.delete(["listing 0", "listing 0"])
    assert len(index) == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_vectors_than_asked_for(kind, vectors, ids):
    found = kind(ids[:3], vectors[:3]).search(vectors[:2], 10)
    assert found.positions.shape == (2, 3)
    assert kind(ids, vectors).search(vectors[:0], 10).positions.shape == (0, 10)


def test_vectors_of_another_embedder_are_refused(vectors, ids, tmp_path):
    ExactIndex(ids, vectors, "one").save(tmp_path / "index")
    with pytest.raises(RunError, match="embed the catalogue again"):
        load_index(tmp_path / "index", embedder="two")
    with pytest.raises(RunError, match="afmrl embed"):
        load_index(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vectors_are_refused(kind, vectors, ids):
    with pytest.raises(RunError, match="one vector per id"):
        kind(ids[:-1], vectors)
    with pytest.raises(RunError, match="'same' is repeated"):
        kind(["same", *ids[:-2], "same"], vectors)
    broken = vectors.copy()
    broken[4, 2] = np.nan
    with pytest.raises(RunError, match="non-finite"):
        kind(ids, broken)


def test_an_id_that_was_changed_in_the_file_is_noticed(vectors, ids, tmp_path):
    # W4
    ExactIndex(ids, vectors, "r").save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace(f'"{ids[3]}"', '"another"'))
    with pytest.raises(RunError, match=r"index\.json is not what was written"):
        load_index(tmp_path / "index")


def without_seals(folder):
    """The folder as versions before the first format wrote it."""
    path = folder / "index.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({k: about[k] for k in about.keys() - {"format", "files", "sha256"}}))


# W4, F13
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_bit_in_any_file_of_an_index_is_noticed(kind, vectors, ids, tmp_path):
    kind(ids, vectors).save(tmp_path / "index")
    paths = [x for x in (tmp_path / "index").iterdir() if x.name != "index.json"]
    assert paths
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(RunError, match=f"{path.name} is not what was written"):
            load_index(tmp_path / "index")
        path.write_bytes(data)
    load_index(tmp_path / "index")


# F13
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\xff"], ids=["gone", "empty", "bytes"])
def test_damage_to_an_older_scann_index_is_named(vectors, ids, tmp_path, content):
    ScannIndex(ids, vectors).save(tmp_path / "index")
    without_seals(tmp_path / "index")
    load_index(tmp_path / "index")
    for name in ("dataset.npy", "scann_assets.pbtxt", "scann_config.pb"):
        path = tmp_path / "index" / name
        data = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(RunError, match="; embed the catalogue again"):
            load_index(tmp_path / "index")
        path.write_bytes(data)


# F13
@pytest.mark.parametrize("settings", [7, {"leaves": "many"}, {"hashed": None}])
def test_odd_settings_of_a_scann_index_are_named(vectors, ids, tmp_path, settings):
    ScannIndex(ids, vectors).save(tmp_path / "index")
    without_seals(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))
    with pytest.raises(RunError, match=r"index\.json: .*; embed the catalogue again"):
        load_index(tmp_path / "index")


class Planted:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("older", [False, True])
def test_no_pickle_in_the_folder_of_an_index_is_loaded(vectors, ids, tmp_path, older):
    ScannIndex(ids, vectors).save(tmp_path / "index")
    if older:
        without_seals(tmp_path / "index")
    planted = pickle.dumps(Planted(tmp_path / "planted"))
    (tmp_path / "index" / "scann_docids.pkl").write_bytes(planted)
    load_index(tmp_path / "index")
    assert not (tmp_path / "planted").exists()


# F13
@pytest.mark.parametrize("name", ["../outside.npy", "/etc/hostname", "", "gone.npy", "."])
def test_a_scann_index_names_no_file_elsewhere(vectors, ids, tmp_path, name):
    index = tmp_path / "index"
    ScannIndex(ids, vectors).save(index)
    without_seals(index)
    shutil.copy(index / "dataset.npy", tmp_path / "outside.npy")
    path = index / "scann_assets.pbtxt"
    path.write_text(path.read_text().replace('"dataset.npy"', json.dumps(name)))
    with pytest.raises(RunError, match=r"scann_assets\.pbtxt names .*, no file of its folder"):
        load_index(index)
    assert {x.name for x in tmp_path.iterdir()} == {"index", "outside.npy"}
