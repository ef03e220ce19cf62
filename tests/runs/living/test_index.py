"""The living index against a dictionary of what it should hold, through restarts and compaction."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from afmrl_jax.errors import InputError, RunError
from afmrl_jax.runs.embedded import ABOUT, LOG
from afmrl_jax.runs.living.changes import Change, encoded
from afmrl_jax.runs.living.filters import parse_where
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.living.maintenance import compact, read_ids, remove_listings, stats
from afmrl_jax.runtime.outputs import only_writer
from tests.runs.living.conftest import COUNT, DIM, entry, unit


def writing(folder):
    return LivingIndex(folder, writer="afmrl index")


def check(index, held, rng):
    """An index holds exactly some entries, and finds what comparing all of them finds."""
    assert len(index) == len(held)
    assert {x.listing_id for x in index.entries()} == set(held)
    half = index.dtype == "bfloat16"
    for x in index.entries():
        wanted = held[x.listing_id]
        assert {**x.line, "thumbnail": 0} == {**wanted.line, "thumbnail": 0}
        assert x.thumbnail == wanted.thumbnail
        np.testing.assert_allclose(x.vector, wanted.vector, atol=4e-3 if half else 1e-6)
    queries = unit(rng, 5)
    vectors, ids = np.stack([x.vector for x in held.values()]), list(held)
    scores = queries @ vectors.T
    if half:
        rounded = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (queries, vectors)]
        scores = rounded[0] @ rounded[1].T
    for k in (1, 7, 10**6):
        for row, hits in zip(scores, index.search(queries, k), strict=True):
            best = np.argsort(-row, kind="stable")[:k]
            np.testing.assert_allclose([x[1] for x in hits], row[best], atol=1e-5)
            assert [x[0] for x in hits] == [ids[n] for n in best] or half


def change(index, held, rng, number):
    """Some random additions, replacements and removals, on both sides."""
    fresh = [entry(f"new-{number}-{n}", x, 100 + n) for n, x in enumerate(unit(rng, 6))]
    again = rng.choice(sorted(held), 4, replace=False).tolist()
    fresh += [entry(x, v, 200, brand="Other") for x, v in zip(again, unit(rng, 4), strict=True)]
    index.put(fresh)
    held.update((x.listing_id, x) for x in fresh)
    gone = rng.choice(sorted(held), 5, replace=False).tolist()
    index.remove(gone)
    for x in gone:
        del held[x]


def test_it_holds_and_finds_what_was_put(shop, rng):
    folder, held = shop
    with writing(folder) as index:
        check(index, held, rng)
        for number in range(3):
            change(index, held, rng, number)
            check(index, held, rng)
    with LivingIndex(folder) as index:
        check(index, held, rng)
    before = (folder / LOG).stat().st_size
    assert before
    assert compact(folder) == len(held)
    assert not (folder / LOG).exists()
    with writing(folder) as index:
        check(index, held, rng)
        change(index, held, rng, 9)
        check(index, held, rng)
    assert not list(folder.parent.glob(".*")), "no lock and no half of a folder"


def test_filters_are_those_of_comparing_all(shop, rng):
    folder, held = shop
    with writing(folder) as index:
        change(index, held, rng, 0)
        for texts, fits in [
            (["price<10"], lambda x: x["price"] < 10),
            (["price>=10", "brand=Acme"], lambda x: x["price"] >= 10 and x.get("brand") == "Acme"),
            (["brand!=Acme"], lambda x: x.get("brand", "Acme") != "Acme"),
            (["price>1000"], lambda x: False),
        ]:
            wanted = {k: x for k, x in held.items() if fits(x.line["extra"])}
            query = unit(rng, 3)
            found = index.search(query, 5, parse_where(texts))
            plain = index.search(query, COUNT * 3)
            assert [[x[0] for x in hits] for hits in found] == [
                [x[0] for x in hits if x[0] in wanted][:5] for hits in plain
            ]
        (hits,) = index.search(unit(rng, 1), 99, parse_where(["listing_id~new-0"]))
        assert {x[0] for x in hits} == {x for x in held if "new-0" in x}
        with pytest.raises(InputError, match=r"no listing has 'prize'; there are .*price"):
            index.search(unit(rng, 1), 5, parse_where(["prize<3"]))


def test_nothing_is_written_that_does_not_fit(shop, rng):
    folder, _ = shop
    (vector,) = unit(rng, 1)
    with writing(folder) as index:
        for bad, message in [
            ([entry("a", vector * 2)], "no unit vector"),
            ([entry("a", vector[:3])], "no unit vector"),
            ([entry("a", vector * np.nan)], "no unit vector"),
            ([entry("a", vector), entry("a", vector)], "'a' is repeated"),
            ([entry("a", vector, brand="\ud800")], "cannot be written"),
        ]:
            with pytest.raises(RunError, match=message):
                index.put(bad)
        for ids, message in [(["none"], "is not in"), (["old-1", "old-1"], "is repeated")]:
            with pytest.raises(RunError, match=message):
                index.remove(ids)
        index.put([])
    assert not (folder / LOG).exists()
    with LivingIndex(folder) as index, pytest.raises(RunError, match="read only"):
        index.remove(["old-1"])


def test_all_can_go_and_others_come(shop, rng):
    folder, held = shop
    remove_listings(folder, list(held))
    with pytest.raises(RunError, match="no listing left"):
        compact(folder)
    with writing(folder) as index:
        assert index.search(unit(rng, 2), 3) == [[], []]
        fresh = [entry(f"new-{n}", x) for n, x in enumerate(unit(rng, 100))]
        index.put(fresh)
        check(index, {x.listing_id: x for x in fresh}, rng)
    assert compact(folder) == 100


def test_one_process_writes(shop):
    folder, _ = shop
    with writing(folder):
        with pytest.raises(RunError, match="another `afmrl index remove` is writing"):
            remove_listings(folder, ["old-1"])
        LivingIndex(folder).close()
    with only_writer(folder, "afmrl embed"), pytest.raises(RunError, match="another"):
        compact(folder)


def test_a_damaged_log_is_named(shop, rng):
    folder, _ = shop
    with writing(folder) as index:
        index.put([entry("a", *unit(rng, 1))])
        index.remove(["a"])
    path = folder / LOG
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"changes\.log: record 2, .* is damaged .*restore"):
        LivingIndex(folder)
    with pytest.raises(RunError, match="damaged"):
        writing(folder)
    assert not list(folder.parent.glob(".*.lock"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 3}, "not an object with texts"),
        ({"attributes": ["red"]}, "attributes of 'a' is no text"),
        ({"content": 7}, "content of 'a' is no text"),
        ({"extra": 7}, "extra of 'a' is no object of texts and numbers"),
        ({"extra": {"price": [3]}}, "extra of 'a' is no object of texts and numbers"),
    ],
)
def test_a_record_with_another_type_is_named(shop, rng, change, message):
    folder, _ = shop
    (vector,) = unit(rng, 1)
    with writing(folder) as index:
        index.put([replace(entry("a", vector), line=entry("a", vector).line | change)])
    with pytest.raises(RunError, match=rf"changes\.log: record 2.*{message}.*embed"):
        LivingIndex(folder)


@pytest.mark.parametrize("factor", [2.0, 0.0, np.nan, np.inf, 1e30])
def test_a_record_whose_vector_has_another_length_is_named(shop, rng, factor):
    folder, _ = shop
    (vector,) = unit(rng, 1)
    with writing(folder) as index:
        index.put([entry("a", vector)])
        index.log.append(encoded(Change(put=[entry("b", np.full(DIM, factor, np.float32))])))
    with pytest.raises(RunError, match=r"record 3 holds a vector that is not of length 1; restore"):
        LivingIndex(folder)


def test_a_log_of_another_index_is_refused(shop, rng):
    folder, _ = shop
    with writing(folder) as index:
        index.put([entry("a", *unit(rng, 1))])
    log = (folder / LOG).read_bytes()
    compact(folder)
    (folder / LOG).write_bytes(log)
    with pytest.raises(RunError, match="belongs to another index"):
        LivingIndex(folder)


def test_stats(shop, rng):
    folder, held = shop
    with writing(folder) as index:
        change(index, held, rng, 0)
    found = stats(folder)
    assert found["listings"] == len(held)
    assert found["base"] + found["added"] == len(held)
    assert found["removed"] == COUNT - found["base"]
    assert found["columns"]["price"] == len(held)
    assert (found["changes"], found["dim"], found["thumbnails"]) == (2, DIM, 64)
    assert found["log_bytes"] == (folder / LOG).stat().st_size < found["bytes"]


def test_no_folder_is_said(tmp_path):
    with pytest.raises(RunError, match="no embedded catalogue"):
        writing(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_ids_of_a_file(tmp_path):
    path = tmp_path / "ids"
    path.write_bytes("é-1\n\nb 2\r\n".encode())
    assert read_ids(path) == ["é-1", "b 2"]
    path.write_bytes(b"\xff\n")
    with pytest.raises(RunError, match="not UTF-8"):
        read_ids(path)


def test_an_older_folder_takes_changes(shop, rng):
    import json

    folder, _ = shop
    about = json.loads((folder / ABOUT).read_text())
    del about["thumbnails"], about["files"]["thumbnails.bin"]
    (folder / ABOUT).write_text(json.dumps(about | {"format": 1}))
    (folder / "thumbnails.bin").unlink()
    with writing(folder) as index:
        index.put([entry("a", *unit(rng, 1))])
        index.remove(["old-3"])
    assert compact(folder) == COUNT
