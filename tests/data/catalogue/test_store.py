"""Catalogues converted to stores: nothing is lost, by a kill neither, and damage is noticed."""

import dataclasses
import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from afmrl_jax.data.catalogue import convert as convert_module
from afmrl_jax.data.catalogue import load as reading
from afmrl_jax.data.catalogue import schema as fields
from afmrl_jax.data.catalogue import store as store_module
from afmrl_jax.data.catalogue import tfds_examples
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.records import SPLITS
from afmrl_jax.errors import CatalogueError, ConfigError, RunError
from afmrl_jax.testing import write_badge_catalogue

SMALL = Conversion(shard_bytes=10_000)


@pytest.fixture
def folder(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=2)


@pytest.fixture
def store(folder, tmp_path):
    """The badges as a store of several shards."""
    convert(open_rows(folder), tmp_path / "store", SMALL)
    return tmp_path / "store"


def bare(listing):
    return dataclasses.replace(listing, image=b"")


def spoil(folder, *numbers):
    """Take the titles of some records away."""
    path = folder / "listings.jsonl"
    found = [json.loads(x) for x in path.read_text().splitlines()]
    for number in numbers:
        found[number]["title"] = ""
    path.write_text("".join(json.dumps(x) + "\n" for x in found))


def test_a_store_holds_the_same_listings_in_the_same_splits(folder, store):
    plain, stored = load_catalogue(folder), load_catalogue(store)
    assert [bare(x) for x in stored.listings] == [bare(x) for x in plain.listings]
    assert [bare(stored.listings[i]) for i in (0, 17, -1)] == [
        bare(plain.listings[i]) for i in (0, 17, -1)
    ]
    pictures = [x.read_image_bytes() for x in plain.listings]
    assert [x.read_image_bytes() for x in stored.listings] == pictures
    for split in SPLITS:
        some = stored.subset(split)
        assert some.column("listing_id") == [x.listing_id for x in plain.subset(split).listings]
        assert some.column("true_product") == [x.product_id for x in plain.subset(split).listings]
    assert [x.title for x in stored.listings[3:9:2]] == [x.title for x in plain.listings[3:9:2]]


def test_another_process_writes_the_same_bytes(folder, store, tmp_path):
    command = ["catalogue-convert", "--catalogue", str(folder), "--shard-bytes", "10000", "--out"]
    again = tmp_path / "again"
    command = [sys.executable, "-m", "afmrl_jax", *command, str(again)]
    subprocess.run(command, check=True, capture_output=True)
    shards = sorted(x.name for x in store.glob("*.array_record-*"))
    assert len(shards) > 1
    assert [(again / x).read_bytes() for x in shards] == [(store / x).read_bytes() for x in shards]
    assert load_catalogue(again).listings.fingerprint == load_catalogue(store).listings.fingerprint


def test_the_manifest_says_what_the_store_holds(folder, store):
    manifest = json.loads((store / "manifest.json").read_text())
    assert len(manifest["shards"]) > 3
    assert sum(x["listings"] for x in manifest["shards"]) == manifest["listings"] == 60
    assert manifest["splits_drawn"]
    summary = check_catalogue(folder, [].append)
    assert {name: manifest[name] for name in summary} == summary
    assert manifest["coverage"]["attributes"] == 1
    assert not list(store.parent.glob(".*")), "nothing is left beside it"


def test_tfds_reads_a_store(folder, store):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(store).as_data_source(split="listings")
    first = load_catalogue(folder).listings[0]
    assert len(source) == 60
    assert source[0]["listing_id"].decode() == first.listing_id
    assert source[0]["image"] == first.read_image_bytes()


def test_a_worker_process_gets_the_place_and_not_the_listings(store):
    listings = load_catalogue(store).listings
    listings[5]  # maps the columns
    sent = pickle.dumps(listings)
    assert len(sent) < 5000
    again = pickle.loads(sent)
    assert bare(again[5]) == bare(listings[5])
    assert again[5].read_image_bytes() == listings[5].read_image_bytes()


def test_a_store_can_be_converted_checked_and_moved(store, tmp_path):
    other = tmp_path / "moved"
    store.rename(other)
    again = convert(open_rows(other), tmp_path / "again", SMALL)
    assert again["fingerprint"] == json.loads((other / "manifest.json").read_text())["fingerprint"]
    problems = []
    check_catalogue(other, problems.append)
    assert [x.severity for x in problems] == []


def test_a_published_folder_and_what_tfds_made_of_it_are_catalogues(raw_folder, tmp_path):
    from afmrl_jax.data.catalogue.published.builders import M5Product, prepare

    folder = raw_folder("m5product")
    plain = load_catalogue(folder)
    prepared = load_catalogue(prepare(M5Product, folder, tmp_path / "data").data_dir)
    convert(open_rows(folder), tmp_path / "store", SMALL)
    pictures = {x.listing_id: x.read_image_bytes() for x in plain.listings}
    for other in (prepared, load_catalogue(tmp_path / "store")):
        assert {x.listing_id: x.read_image_bytes() for x in other.listings} == pictures
    coarse = open_rows(folder, {"task": "coarse"})
    found = [row["listing_id"] for _, row in coarse.read(lambda _: None)]
    assert found != [x.listing_id for x in plain.listings]
    assert coarse.stamp != open_rows(folder).stamp
    with pytest.raises(ConfigError, match="no option 'tsk'; it has task"):
        open_rows(folder, {"tsk": "coarse"})
    with pytest.raises(ConfigError, match="leave --options out"):
        open_rows("furniture", {"task": "coarse"})


class Killed(BaseException):
    """Not to be caught."""


def killed_at(source, record):
    """The same source, in which reading dies at a record."""

    def read(report):
        for number, row in enumerate(source.read(report)):
            if number == record:
                raise Killed
            yield row

    return dataclasses.replace(source, read=read)


@pytest.mark.parametrize("record", [0, 7, 31, 59])
def test_a_killed_conversion_goes_on_behind_its_last_shard(folder, tmp_path, record, monkeypatch):
    spoil(folder, 3, 20, 50)
    how = dataclasses.replace(SMALL, skip_bad=True)
    whole = convert(open_rows(folder), tmp_path / "whole", how)
    with pytest.raises(Killed):
        convert(killed_at(open_rows(folder), record), tmp_path / "store", how)
    assert not (tmp_path / "store").exists()

    seen = []

    def to_listing(row, *where):
        seen.append(row)
        return fields.to_listing(row, *where)

    monkeypatch.setattr(reading, "to_listing", to_listing)
    resumed = convert(open_rows(folder), tmp_path / "store", how)
    assert resumed == whole
    assert whole["left_out"] == 3
    assert len(seen) < 60 or record < 31, "finished shards are not read again"
    for one, two in zip(
        load_catalogue(tmp_path / "whole").listings,
        load_catalogue(tmp_path / "store").listings,
        strict=True,
    ):
        assert bare(one) == bare(two)
        assert one.read_image_bytes() == two.read_image_bytes()


def test_a_changed_catalogue_is_converted_anew(folder, tmp_path):
    with pytest.raises(Killed):
        convert(killed_at(open_rows(folder), 40), tmp_path / "store", SMALL)
    spoil(folder, 2)
    how = dataclasses.replace(SMALL, skip_bad=True)
    assert convert(open_rows(folder), tmp_path / "store", how)["listings"] == 59


def test_an_unusable_record_is_named_and_nothing_appears(folder, tmp_path):
    spoil(folder, 30)
    label = load_catalogue(folder, skip_bad=True).skipped[0].record
    with pytest.raises(CatalogueError) as error:
        convert(open_rows(folder), tmp_path / "store", SMALL)
    for word in (label, "listings.jsonl", "'title' is empty", "--skip-bad"):
        assert word in str(error.value)
    assert not (tmp_path / "store").exists()


def test_an_existing_folder_is_not_overwritten(folder, store):
    with pytest.raises(ConfigError, match="exists; choose another"):
        convert(open_rows(folder), store, SMALL)


def test_damage_is_noticed(store):
    shard = store / json.loads((store / "manifest.json").read_text())["shards"][1]["file"]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (problem,) = open_rows(store).store.verify()
    assert problem.file == str(shard)
    shard.write_bytes(data[:-20])
    with pytest.raises(CatalogueError, match="cut off; copy the store again"):
        load_catalogue(store)


def test_listings_in_object_storage_are_read(folder, tmp_path, bucket):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.pipe(f"s3://bucket/shop/{path.relative_to(folder)}", path.read_bytes())
    there = load_catalogue("s3://bucket/shop")
    assert there.fingerprint == load_catalogue(folder).fingerprint
    manifest = convert(open_rows("s3://bucket/shop"), tmp_path / "store", SMALL)
    assert manifest["listings"] == 60
    with pytest.raises(ConfigError, match="copy the folder there"):
        convert(open_rows(folder), "s3://bucket/store", SMALL)


def test_object_storage_that_cannot_be_reached_is_named(bucket, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("a library's own kind of error")

    monkeypatch.setattr(type(bucket), "exists", refuse)
    with pytest.raises(ConfigError, match=r"s3://bucket/shop cannot be reached: a lib.*cred"):
        load_catalogue("s3://bucket/shop")


def test_batches_of_a_store_are_those_of_the_folder(folder, store, tokenizer):
    from afmrl_jax.config import ImageConfig, TextBudget
    from afmrl_jax.data.sources.prompts import PromptCollator, PromptSource
    from afmrl_jax.data.sources.row_builder import RowBuilder

    found = []
    for where in (folder, store):
        listings = load_catalogue(where).listings
        builder = RowBuilder.of(listings, tokenizer, ImageConfig(), TextBudget())
        queries = np.arange(len(listings))
        source = PromptSource(PromptCollator(builder, 112), queries, steps=3, batch_size=4, seed=0)
        found.append(source[1])
    one, two = found
    np.testing.assert_array_equal(one.queries, two.queries)
    leaves = [jax.tree.leaves(x.rows) for x in (one, two)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_conversions_to_one_place_do_not_mix(folder, tmp_path):  # S3
    said = []

    def read(report):
        with pytest.raises(RunError, match=r"is converting to .*; wait for it") as e:
            convert(open_rows(folder), tmp_path / "store", SMALL)
        said.append(e)
        yield from open_rows(folder).read(report)

    source = dataclasses.replace(open_rows(folder), read=read)
    assert convert(source, tmp_path / "store", SMALL)["listings"] == 60
    assert len(said) == 1
    assert sorted(x.name for x in tmp_path.iterdir()) == ["shop", "store"]
    assert not list((tmp_path / "store").glob(".*"))


def test_the_lock_of_a_conversion_follows_no_link(folder, tmp_path):  # S6
    (tmp_path / "mine").write_text("keep")
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match=r"\.lock should be a lock file and is a link"):
        convert(open_rows(folder), tmp_path / "store", SMALL)
    assert (tmp_path / "mine").read_text() == "keep"


@pytest.mark.parametrize("name", ["shard-00001", "columns-00000", "census.sqlite"])
def test_unfinished_work_that_was_damaged_is_done_again(folder, tmp_path, name):
    whole = convert(open_rows(folder), tmp_path / "whole", SMALL)
    with pytest.raises(Killed):
        convert(killed_at(open_rows(folder), 40), tmp_path / "store", SMALL)
    path = tmp_path / ".store.partial" / name
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes(len(data) - 50))
    assert convert(open_rows(folder), tmp_path / "store", SMALL) == whole
    problems = []
    check_catalogue(tmp_path / "store", problems.append)
    assert not problems


def test_parts_of_a_split_are_kept(folder, tmp_path):
    path = folder / "listings.jsonl"
    found = [json.loads(x) for x in path.read_text().splitlines()]
    for record in found[::2]:
        record["part"] = "learn"
    before = load_catalogue(folder)
    path.write_text("".join(json.dumps(x) + "\n" for x in found))
    convert(open_rows(folder), tmp_path / "store", SMALL)
    plain, stored = load_catalogue(folder), load_catalogue(tmp_path / "store")
    assert stored.column("part") == plain.column("part")
    assert set(plain.column("part")) == {"learn", None}
    assert plain.fingerprint != before.fingerprint
    assert {row.get("part") for _, row in open_rows(tmp_path / "store").read(print)} == {
        "learn",
        None,
    }


def test_a_store_from_before_parts_is_read(folder, tmp_path, monkeypatch):
    def without(names):
        return tuple(x for x in names if x != "part")

    with monkeypatch.context() as older:
        older.setattr(store_module, "COLUMNS", without(store_module.COLUMNS))
        older.setattr(convert_module, "COLUMNS", without(convert_module.COLUMNS))
        older.setattr(tfds_examples, "COLUMNS", without(tfds_examples.COLUMNS))
        older.setattr(tfds_examples, "STORED", without(tfds_examples.STORED))
        older.setattr(tfds_examples, "TEXTS", without(tfds_examples.TEXTS))
        tfds_examples._features.cache_clear()
        convert(open_rows(folder), tmp_path / "store", SMALL)
    tfds_examples._features.cache_clear()
    plain, stored = load_catalogue(folder), load_catalogue(tmp_path / "store")
    assert [bare(x) for x in stored.listings] == [bare(x) for x in plain.listings]
    assert stored.column("part") == [None] * len(plain)
    assert stored.listings[3].read_image_bytes() == plain.listings[3].read_image_bytes()
