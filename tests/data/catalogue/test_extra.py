"""Columns that are not a listing's: carried from the table to the index, or named."""

import datetime
import json
from decimal import Decimal

import pytest

from afmrl_jax.cli import main as cli
from afmrl_jax.data.catalogue import convert as conversion
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.schema import LONGEST_EXTRA, MAX_EXTRA, left_columns, to_listing
from afmrl_jax.data.catalogue.tfds_examples import COLUMNS
from afmrl_jax.runs.embedded import line_of
from afmrl_jax.testing import write_badge_catalogue

ROW = {"listing_id": "a", "product_id": "p", "title": "Chair", "image": b"x"}
EXTRA = {"price": 9.5, "stock": 3, "sale": False, "url": "https://shop.example/1?a=b"}


@pytest.fixture
def folder(tmp_path):
    folder = write_badge_catalogue(tmp_path / "shop", listings_per_product=2)
    rows = [json.loads(x) for x in (folder / "listings.jsonl").read_text().splitlines()]
    rows = [x | EXTRA | {"extra": "own", "tags": ["a"]} for x in rows]
    rows[0].pop("price")
    (folder / "listings.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return folder


def test_plain_values_are_carried_and_the_others_named():
    row = ROW | EXTRA | {
        "none": None, "blank": " ", "empty": "", "nan": float("nan"), "inf": float("inf"),
        "tags": ["a"], "map": {"a": 1}, "bytes": b"x", "weight": Decimal("9.90"),
        "since": datetime.date(2020, 1, 2), "note": "a\x1b[2J\nb", "half": "a\ud800",
        "long": "x" * (LONGEST_EXTRA + 1), "a\x1bb": 1, "": 2, "n" * 100: 3,
    }  # fmt: skip
    found = to_listing(row, None).extra
    more = {"weight": "9.90", "since": "2020-01-02", "note": "a [2J\nb", "half": "a?"}
    assert found == EXTRA | more
    assert left_columns(row) == {
        "inf": "not finite", "tags": "a list", "map": "a dict", "bytes": "a bytes",
        "long": "longer than 1024 letters", "a\x1bb": "its name", "": "its name",
        "n" * 100: "its name",
    }  # fmt: skip
    many = ROW | {f"c{n}": n for n in range(MAX_EXTRA + 2)}
    assert len(to_listing(many, None).extra) == MAX_EXTRA
    assert left_columns(many) == {f"c{n}": "there are more than 64" for n in (64, 65)}
    assert to_listing(ROW, None).extra is None


def test_a_check_names_them(folder, capsys):
    problems = []
    summary = check_catalogue(folder, problems.append)
    rest = dict.fromkeys(("stock", "sale", "url", "extra"), 1.0)
    assert summary["carried"] == {"price": 0.983, **rest}
    (warning,) = problems
    assert "'tags' (a list) in 60" in warning.what
    assert warning.severity == "warning"
    cli.main(["catalogue-check", str(folder)])
    assert "carried  stock 100 %, sale 100 %, url 100 %, extra 100 %, price 98 %" in (
        capsys.readouterr().out
    )


def test_a_store_has_them_and_they_change_no_fingerprint(folder, tmp_path):
    whole = load_catalogue(folder)
    assert whole.listings[1].extra == EXTRA | {"extra": "own"}
    how = Conversion(shard_bytes=4000)
    manifest = convert(open_rows(folder), tmp_path / "store", how)
    assert manifest["carried"]["url"] == 1.0
    store = load_catalogue(tmp_path / "store")
    expected = [x.extra for x in whole.listings]
    assert [x.extra for x in store.listings] == expected
    assert store.listings[5].extra == expected[5]
    assert store.column("extra") == expected
    convert(open_rows(tmp_path / "store"), tmp_path / "again", how)
    again = load_catalogue(tmp_path / "again")
    assert [x.extra for x in again.listings] == expected
    write_badge_catalogue(folder, listings_per_product=2)
    assert load_catalogue(folder).fingerprint == whole.fingerprint


@pytest.mark.parametrize("lacking", [("extra",), ("part", "extra")])
def test_a_store_that_was_written_before_them_is_read(folder, tmp_path, monkeypatch, lacking):
    known = tuple(x for x in COLUMNS if x not in lacking)
    monkeypatch.setattr(conversion, "COLUMNS", known)
    convert(open_rows(folder), tmp_path / "store", Conversion())
    store = load_catalogue(tmp_path / "store")
    assert store.column("title") == load_catalogue(folder).column("title")
    assert store.listings[3].extra is None


def test_results_show_them():
    listing = to_listing(ROW | EXTRA, None)
    assert line_of(listing, "h", None)["extra"] == EXTRA
    assert "extra" not in line_of(to_listing(ROW, None), "h", None)


def test_a_file_with_other_names_in_each_line_is_counted_in_bounded_memory(folder):
    path = folder / "listings.jsonl"
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {f"c{n}-{m}": m for m in range(30)} | {f"d{n}-{m}": [m] for m in range(30)}
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    problems = []
    summary = check_catalogue(folder, problems.append)
    assert len(summary["carried"]) == 1000
    assert "and 980 more" in problems[0].what
