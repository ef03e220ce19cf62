"""Every export, read by its own client, finds what the index finds."""

import json

import numpy as np
import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.runs.living import export
from afmrl_jax.runs.living.export import export_index
from afmrl_jax.runs.living.index import LivingIndex
from tests.runs.living.conftest import entry, unit, write_folder

K = 5


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder whose log has additions, replacements and removals; some queries; what they find."""
    rng = np.random.default_rng(4)
    folder = tmp_path_factory.mktemp("export") / "index"
    write_folder(folder, rng)
    with LivingIndex(folder, writer="test") as index:
        index.put([entry(f"new-{n}", x, 1.5 * n, note=n) for n, x in enumerate(unit(rng, 9))])
        index.put([entry("old-3", *unit(rng, 1), "on request", sale=True)])
        index.remove(["old-5", "new-2"])
        queries = unit(rng, 6)
        hits = index.search(queries, K)
    return folder, queries, hits


def same(found, hits):
    """Ids and cosines are those of the index."""
    for (ids, scores), wanted in zip(found, hits, strict=True):
        assert ids == [x[0] for x in wanted]
        np.testing.assert_allclose(scores, [x[1] for x in wanted], atol=1e-5)


def test_parquet(shop, tmp_path):
    import pyarrow.parquet as pq

    folder, queries, hits = shop
    assert export_index(folder, tmp_path / "a.parquet", "parquet") == 47
    table = pq.read_table(tmp_path / "a.parquet")
    vectors = np.stack(table["vector"].to_numpy())
    ids = table["listing_id"].to_pylist()
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :K]
    same([([ids[n] for n in at], row[at]) for at, row in zip(best, scores, strict=True)], hits)
    rows = {x["listing_id"]: x for x in table.to_pylist()}
    # A price that is a number here and a text there is a text.
    assert rows["old-7"]["price"] == "7"
    assert rows["old-3"]["price"] == "on request"
    assert (rows["new-4"]["note"], rows["old-3"]["note"], rows["old-3"]["sale"]) == (4, None, True)
    assert table.schema.metadata[b"afmrl.embedder"] == b"e"


def test_parquet_in_parts_is_the_same(shop, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    folder, _, _ = shop
    export_index(folder, tmp_path / "one.parquet", "parquet")
    monkeypatch.setattr(export, "PART", 7)
    export_index(folder, tmp_path / "many.parquet", "parquet")
    one, many = (pq.read_table(tmp_path / f"{x}.parquet") for x in ("one", "many"))
    assert one.equals(many)


def test_faiss(shop, tmp_path):
    faiss = pytest.importorskip("faiss", reason="the extra faiss is not installed")
    folder, queries, hits = shop
    assert export_index(folder, tmp_path / "faiss", "faiss") == 47
    index = faiss.read_index(str(tmp_path / "faiss" / "index.faiss"))
    scores, places = index.search(queries, K)
    rows = [json.loads(x) for x in (tmp_path / "faiss" / "listings.jsonl").read_text().splitlines()]
    same(
        [([rows[n]["listing_id"] for n in x], s) for x, s in zip(places, scores, strict=True)], hits
    )
    assert {x["listing_id"]: x for x in rows}["old-3"]["price"] == "on request"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_qdrant(shop, tmp_path):
    qdrant = pytest.importorskip("qdrant_client", reason="the extra qdrant is not installed")
    folder, queries, hits = shop
    assert export_index(folder, tmp_path / "qdrant", "qdrant") == 47
    store = qdrant.QdrantClient(path=str(tmp_path / "qdrant"))
    try:
        found = [store.query_points("listings", query=x.tolist(), limit=K).points for x in queries]
        same([([p.payload["listing_id"] for p in x], [p.score for p in x]) for x in found], hits)
        cheap = qdrant.models.FieldCondition(key="price", range=qdrant.models.Range(lt=3))
        points = store.query_points(
            "listings",
            query=queries[0].tolist(),
            limit=50,
            query_filter=qdrant.models.Filter(must=[cheap]),
        ).points
        assert {p.payload["listing_id"] for p in points} == {
            "old-0", "old-1", "old-2", "new-0", "new-1",
        }  # fmt: skip
    finally:
        store.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lancedb(shop, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="the extra lancedb is not installed")
    folder, queries, hits = shop
    assert export_index(folder, tmp_path / "lance", "lancedb") == 47
    table = lancedb.connect(str(tmp_path / "lance")).open_table("listings")
    assert table.count_rows() == 47
    found = [table.search(x).distance_type("cosine").limit(K).to_list() for x in queries]
    same([([r["listing_id"] for r in x], [1 - r["_distance"] for r in x]) for x in found], hits)


def test_a_missing_client_is_named(shop, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'afmrl-jax\[faiss\]'"):
        export_index(shop[0], tmp_path / "faiss", "faiss")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["parquet", "qdrant"])
def test_nothing_is_replaced(shop, tmp_path, target):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    if target == "parquet":
        out = out / "mine"
    with pytest.raises(ConfigError, match="choose another --out"):
        export_index(shop[0], out, target)
