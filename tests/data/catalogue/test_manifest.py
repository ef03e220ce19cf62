"""A store of a stranger, or one that was damaged: every file is what its manifest says."""

import hashlib
import json
import shutil
from functools import partial

import pyarrow as pa
import pytest

from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.errors import CatalogueError
from afmrl_jax.testing import write_badge_catalogue


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of several shards; copy it to change it."""
    base = tmp_path_factory.mktemp("store")
    folder = write_badge_catalogue(base / "shop", listings_per_product=2)
    convert(open_rows(folder), base / "store", Conversion(shard_bytes=40_000))
    return base / "store"


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def manifest_of(store):
    return json.loads((store / "manifest.json").read_text())


def rewrite(store, change):
    manifest = manifest_of(store)
    change(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))


def as_older(store):
    """What was written before columns had hashes."""

    def change(manifest):
        manifest["format"] = 1
        del manifest["descriptions"]
        for shard in manifest["shards"]:
            del shard["columns"]
        hashes = "".join(x["sha256"] for x in manifest["shards"])
        manifest["fingerprint"] = hashlib.sha256(hashes.encode()).hexdigest()

    rewrite(store, change)


def rewrite_columns(store, change):
    path = sorted(store.glob("columns-*"))[0]
    with pa.OSFile(str(path)) as file:
        table = change(pa.ipc.open_file(file).read_all())
    with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_file(raw, table.schema) as file:
        file.write_table(table)


def blotted(data, place):
    return data[:place] + bytes(64) + data[place + 64 :]


def said_of(action, thing):
    """The project's own error of an action; the thing as text if there is none."""
    try:
        action(thing)
    except CatalogueError as error:
        return str(error)
    return str(thing)


def moved(store, number):
    """The store under another name: readers keep files open under their names."""
    return store.rename(store.with_name(f"store-{number}"))


def test_every_file_has_its_hash(store):  # S7
    manifest = manifest_of(store)
    about = [*manifest["shards"], *(x["columns"] for x in manifest["shards"])]
    about += manifest["descriptions"]
    assert len(manifest["shards"]) > 1
    assert {x["file"] for x in about} | {"manifest.json"} == {x.name for x in store.iterdir()}
    for x in about:
        data = (store / x["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (x["bytes"], x["sha256"])


def test_a_flipped_bit_in_any_file_is_reported(store):  # S7
    for path in sorted(store.iterdir()):
        if path.name == "manifest.json":
            continue
        data = path.read_bytes()
        path.write_bytes(data[:90] + bytes([data[90] ^ 1]) + data[91:])
        problems = []
        check_catalogue(store, problems.append)
        assert [x.file for x in problems if "SHA-256" in x.what] == [str(path)]
        path.write_bytes(data)


def test_changed_columns_are_refused_and_change_the_fingerprint(store, whole):  # S7
    path = sorted(store.glob("columns-*"))[0]
    data = path.read_bytes()
    title = load_catalogue(store).listings[0].title.encode()
    path.write_bytes(data.replace(title, title.swapcase()))
    with pytest.raises(CatalogueError, match=r"columns-00000.*arrow was changed; copy"):
        load_catalogue(store)

    def trust(manifest):
        columns = manifest["shards"][0]["columns"]
        columns["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    rewrite(store, trust)
    with pytest.raises(CatalogueError, match="the fingerprint is not that of the hashes"):
        load_catalogue(store)

    def forge(manifest):
        shards = manifest["shards"]
        hashes = "".join(x["sha256"] + x["columns"]["sha256"] for x in shards)
        manifest["fingerprint"] = hashlib.sha256(hashes.encode()).hexdigest()

    rewrite(store, forge)
    assert load_catalogue(store).fingerprint != load_catalogue(whole).fingerprint


def test_without_its_manifest_a_store_is_no_catalogue(store):  # S7
    (store / "manifest.json").unlink()
    for again in range(2):
        with pytest.raises(CatalogueError, match=r"no manifest\.json.*; copy the store again"):
            open_rows(store)
        if not again:
            (store / "manifest.json").symlink_to("gone")
    for path in store.glob("columns-*"):
        path.unlink()
    with pytest.raises(CatalogueError, match=r"no manifest\.json"):
        open_rows(store)


def test_an_older_store_is_read_with_the_fingerprint_it_had(store, whole):  # S7
    as_older(store)
    older, newer = load_catalogue(store), load_catalogue(whole)
    assert [x.title for x in older.listings] == [x.title for x in newer.listings]
    hashes = "".join(x["sha256"] for x in manifest_of(store)["shards"])
    digest = hashlib.sha256(hashlib.sha256(hashes.encode()).hexdigest().encode())
    digest.update(older.listings._numbers.astype("<i8").tobytes())
    digest.update(older.listings._splits.tobytes())
    assert older.fingerprint == digest.hexdigest()[:16]
    problems = []
    check_catalogue(store, problems.append)
    assert not problems


def test_columns_of_an_older_store_are_checked_for_their_form(store):  # F7
    as_older(store)
    path = sorted(store.glob("columns-*"))[0]
    data = path.read_bytes()
    for change in (lambda x: x.slice(1), lambda x: x.drop_columns(["oracle"])):
        rewrite_columns(store, change)
        with pytest.raises(CatalogueError, match=r"columns-00000.*cannot be read.*; copy"):
            load_catalogue(store)
    for place in range(0, len(data) - 64, len(data) // 40):
        path.write_bytes(blotted(data, place))
        again = moved(store, place)
        assert str(again) in said_of(lambda x: list(load_catalogue(x).listings), again)
        again.rename(store)


CHANGES = {
    "not an object": lambda x: [x],
    "no format": lambda x: x.pop("format"),
    "format of the future": lambda x: x.update(format=99),
    "no listings": lambda x: x.pop("listings"),
    "listings a list": lambda x: x.update(listings=[]),
    "listings negative": lambda x: x.update(listings=-4),
    "five too many": lambda x: x.update(listings=x["listings"] + 5),
    "a billion": lambda x: x.update(listings=10**9),
    "a billion in a shard": lambda x: (
        x["shards"][0].update(listings=10**9),
        x.update(listings=10**9 + sum(y["listings"] for y in x["shards"][1:])),
    ),
    "no shards": lambda x: x.update(shards=[], listings=0),
    "a shard without file": lambda x: x["shards"][1].pop("file"),
    "a shard without listings": lambda x: x["shards"][1].update(listings=0),
    "a shard a text": lambda x: x["shards"].__setitem__(1, "x"),
    "a shard elsewhere": lambda x: x["shards"][0].update(file="/etc/passwd"),
    "columns elsewhere": lambda x: x["shards"][0]["columns"].update(file="../x.arrow"),
    "columns of another size": lambda x: x["shards"][0]["columns"].update(bytes=3),
    "no columns": lambda x: x["shards"][0].update(columns=None),
    "no descriptions": lambda x: x.pop("descriptions"),
    "a number as hash": lambda x: x["shards"][0].update(sha256=7),
    "another fingerprint": lambda x: x.update(fingerprint="0" * 64),
    "true as format": lambda x: x.update(format=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_manifest_that_cannot_be_true_is_refused(store, change):  # F7
    manifest = manifest_of(store)
    found = change(manifest)
    content = found if isinstance(found, list) else manifest
    (store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CatalogueError, match=r"(?s)store/.*; (copy|convert)"):
        open_rows(store)


@pytest.mark.parametrize("content", [b"", b"\xac", b"[" * 100_000, b'{"format": ' + b"9" * 5000])
def test_a_manifest_that_is_no_json_is_refused(store, content):  # F2, F7
    (store / "manifest.json").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"manifest\.json is .*; copy the store again"):
        open_rows(store)


def test_damaged_records_are_named_one_by_one(store):  # F7
    shard = store / manifest_of(store)["shards"][1]["file"]
    data = shard.read_bytes()
    named = 0
    # The rest of it is padding.
    used = [x for x in range(0, len(data) - 64, 64) if any(data[x : x + 64])]
    for place in used[:: len(used) // 15]:
        shard.write_bytes(blotted(data, place))
        again = moved(store, place)
        problems = []
        # Where the list of a shard's records is damaged, none of it can be read.
        said = said_of(partial(check_catalogue, report=problems.append), again)
        assert str(again) in said
        assert {x.file for x in problems} <= {str(again), str(again / shard.name)}
        named += any("record" in x.record for x in problems)
        for x in load_catalogue(again).listings:
            said = said_of(lambda x: x.read_image_bytes(), x)
            assert said == str(x) or f"{again}: record" in said
        again.rename(store)
    assert named
