"""Reading catalogues, and what is said of broken ones."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue, require_splits, require_teaching
from afmrl_jax.data.catalogue.records import SPLITS, Catalogue
from afmrl_jax.data.catalogue.splits import hash_splits
from afmrl_jax.errors import CatalogueError
from afmrl_jax.testing import write_badge_catalogue


@pytest.fixture
def folder(tmp_path):
    return write_badge_catalogue(tmp_path / "shop", listings_per_product=2)


def problems_of(folder):
    """Everything that a check says."""
    problems = []
    check_catalogue(folder, problems.append)
    return problems


def records(folder):
    return [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]


def rewrite(folder, change):
    """Apply `change(records)` to the listings file."""
    found = records(folder)
    change(found)
    text = "\n".join(json.dumps(x) for x in found)
    (folder / "listings.jsonl").write_text(text)


def broken_picture(folder, found):
    (folder / found[5]["image"]).write_bytes(b"not a picture")


def cut_off_picture(folder, found):
    path = folder / found[5]["image"]
    path.write_bytes(path.read_bytes()[:150])


def huge_picture(folder, found):
    Image.new("1", (30_000, 30_000)).save(folder / found[5]["image"])


def empty_title(folder, found):
    found[5]["title"] = "  "


def duplicate_id(folder, found):
    found[5]["listing_id"] = found[4]["listing_id"]


def unknown_split(folder, found):
    found[5]["split"] = "validation"


def missing_column(folder, found):
    del found[5]["product_id"]


def picture_outside(folder, found):
    found[5]["image"] = "../../secret.png"


def missing_picture(folder, found):
    found[5]["image"] = "images/gone.png"


def attributes_of_wrong_kind(folder, found):
    found[5]["attributes"] = ["red"]


FAULTS = {
    broken_picture: ("cannot be read", "replace the file"),
    cut_off_picture: ("broken or cut off", "replace the file"),
    huge_picture: ("too large", "scale it down"),
    empty_title: ("'title' is empty", "write one"),
    duplicate_id: ("occurs twice", "unique id"),
    unknown_split: ("unknown split 'validation'", "distill, train, reward, test"),
    missing_column: ("'product_id' is missing", "add it"),
    picture_outside: ("outside the catalogue folder", "copy it into"),
    missing_picture: ("does not exist", "add it"),
    attributes_of_wrong_kind: ("not an object", "key and value"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_is_named_with_its_record_file_and_remedy(folder, fault):
    whole = len(records(folder))
    rewrite(folder, lambda found: fault(folder, found))
    label = records(folder)[5]["listing_id"]

    problems = problems_of(folder)
    (problem,) = [x for x in problems if x.severity == "error"]
    what, remedy = FAULTS[fault]
    assert what in problem.what
    assert remedy in problem.remedy
    assert label in problem.record
    assert problem.file.endswith("listings.jsonl")

    if fault is not cut_off_picture:  # Found when it is decoded, or with --skip-bad.
        with pytest.raises(CatalogueError) as error:
            load_catalogue(folder)
        for word in (label, "listings.jsonl", what, remedy, "--skip-bad"):
            assert word in str(error.value)

    kept = load_catalogue(folder, skip_bad=True)
    assert len(kept) == whole - 1
    assert [what in x.what for x in kept.skipped] == [True]


def test_all_faults_are_reported_at_once(folder):
    def spoil(found):
        found[1]["title"] = ""
        found[9]["split"] = "nowhere"
        (folder / found[20]["image"]).write_bytes(b"")

    rewrite(folder, spoil)
    problems = problems_of(folder)
    assert len([x for x in problems if x.severity == "error"]) == 3


def test_a_line_that_is_no_json_is_named(folder):
    path = folder / "listings.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(CatalogueError, match="line 61"):
        load_catalogue(folder)


def test_a_single_product_is_refused(folder):
    rewrite(folder, lambda found: found.__delitem__(slice(2, None)))
    with pytest.raises(CatalogueError, match="at least two"):
        load_catalogue(folder)
    problems = problems_of(folder)
    assert any("at least two" in x.remedy or "at least two" in x.what for x in problems)


def test_a_family_in_two_splits_is_refused(folder):
    def spoil(found):
        for n, x in enumerate(found):
            x["split"] = SPLITS[n // 2 % 4]
            x["family_id"] = "all"

    rewrite(folder, spoil)
    with pytest.raises(CatalogueError, match="one split"):
        load_catalogue(folder)


def test_splits_for_a_part_only_are_refused(folder):
    rewrite(folder, lambda found: found[0].update(split="test"))
    with pytest.raises(CatalogueError, match="give all a split or none"):
        load_catalogue(folder)


def test_no_folder_and_no_file(tmp_path):
    with pytest.raises(CatalogueError, match="does not exist"):
        load_catalogue(tmp_path / "nowhere")
    with pytest.raises(CatalogueError, match=r"listings\.jsonl"):
        load_catalogue(tmp_path)


def test_optional_columns_may_be_missing(folder):
    def strip(found):
        for x in found:
            for name in ("category", "attributes", "seller"):
                del x[name]

    rewrite(folder, strip)
    catalogue = load_catalogue(folder)
    assert catalogue.listings[0].attributes is None
    require_splits(catalogue)
    with pytest.raises(CatalogueError, match="distillation learns from them"):
        require_teaching(catalogue)


def test_a_split_without_pairs_is_refused(folder):
    catalogue = load_catalogue(folder)
    seen = set()
    singles = [
        x
        for x in catalogue.listings
        if x.split != "reward" or not (x.product_id in seen or seen.add(x.product_id))
    ]
    with pytest.raises(CatalogueError, match="`reward` split"):
        require_splits(Catalogue("shop", tuple(singles)))


def test_parquet_with_picture_bytes_reads_as_the_folder_does(folder, tmp_path):
    found = records(folder)
    for x in found:
        x["image"] = (folder / x["image"]).read_bytes()
        x["attributes"] = json.dumps(x["attributes"])
    (tmp_path / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "table" / "listings.parquet")
    one, two = load_catalogue(folder), load_catalogue(tmp_path / "table")
    assert two.fingerprint == one.fingerprint


def test_parquet_without_a_required_column_is_named(tmp_path):
    pq.write_table(pa.table({"listing_id": ["a"]}), tmp_path / "listings.parquet")
    with pytest.raises(CatalogueError, match="product_id, title, image"):
        load_catalogue(tmp_path)


def test_fingerprint_sees_a_changed_picture(folder):
    before = load_catalogue(folder).fingerprint
    path = folder / records(folder)[3]["image"]
    Image.new("RGB", (40, 40), "red").save(path)
    assert load_catalogue(folder).fingerprint != before


def test_hashed_splits_do_not_depend_on_order_and_cover_all_four():
    groups = [f"family {n}" for n in range(100)]
    splits = hash_splits(groups)
    assert splits == hash_splits(groups[::-1])
    counts = [sum(s == name for s in splits.values()) for name in SPLITS]
    assert counts == [45, 25, 10, 20]
    assert set(hash_splits(["a", "b", "c", "d"]).values()) == set(SPLITS)
    with pytest.raises(CatalogueError, match="4 families"):
        hash_splits(["a", "b", "c"])


def test_second_product_ids_are_measured_by_their_true_product(folder):
    rewrite(folder, lambda found: found[1].update(duplicate_of=found[0]["product_id"]))
    assert load_catalogue(folder).listings[1].duplicate_of == records(folder)[0]["product_id"]
    assert np.isin("test", [x.split for x in load_catalogue(folder).listings])


def test_known_duplicates_stay_in_one_split_and_change_the_fingerprint(folder):
    plain = load_catalogue(folder)
    products = [x.product_id for x in plain.listings]
    # Two ids that hashing has put in different splits.
    split = {x.product_id: x.split for x in plain.listings}
    one, two = next((a, b) for a in products for b in products if split[a] != split[b])

    def group(found):
        for record in found:
            if record["product_id"] in (one, two):
                record["duplicate_group"] = "known"

    rewrite(folder, group)
    grouped = load_catalogue(folder)
    assert len({x.split for x in grouped.listings if x.duplicate_group}) == 1
    assert {x.product_id for x in grouped.listings if x.duplicate_group} == {one, two}
    assert grouped.fingerprint != plain.fingerprint
    assert check_catalogue(folder, [].append)["coverage"]["duplicate_group"] > 0

    def divide(found):
        for record in found:
            record["split"] = "train" if record["product_id"] == one else "test"

    rewrite(folder, divide)
    with pytest.raises(CatalogueError, match="duplicate group known is in split"):
        load_catalogue(folder)
