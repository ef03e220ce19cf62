"""Two catalogues as one: names that do not meet, listings that are what they were."""

from dataclasses import replace
from pathlib import Path

import pytest

from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.joined import JoinedCatalogue, record_of
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.catalogue.schema import to_listing
from afmrl_jax.errors import CatalogueError
from afmrl_jax.testing import write_badge_catalogue


def listing(number, product, **options):
    return Listing(number, product, f"title {number}", b"picture", split="train", **options)


def test_names_that_both_have_are_changed_in_every_column():
    ours = Catalogue(
        "ours", (listing("1", "p", family_id="f"), listing("2", "q"), listing("1~2", "r"))
    )
    theirs = Catalogue(
        "theirs",
        (
            listing("1", "p", family_id="f", duplicate_group="p"),
            listing("3", "s", duplicate_of="p"),
            listing("2", "s"),
        ),
    )
    both = JoinedCatalogue((ours, theirs))
    assert both.name == "ours+theirs"
    assert both.column("listing_id") == ["1", "2", "1~2", "1~3", "3", "2~2"]
    assert both.column("product_id") == ["p", "q", "r", "p~2", "s", "s"]
    assert both.column("duplicate_of") == [None, None, None, None, "p~2", None]
    assert both.column("family_id") == ["f", None, None, "f~2", None, None]
    assert both.column("duplicate_group") == [None, None, None, "p", None, None]
    assert [both.place(0, "1"), both.place(1, "1"), both.place(1, "9")] == [0, 3, None]
    rows = [row for _, row in both.rows()]
    assert [x["listing_id"] for x in rows] == both.column("listing_id")
    assert rows[4]["duplicate_of"] == "p~2"


def test_a_record_makes_the_listing_that_it_is_of(tmp_path):
    one = listing(
        "a", "p", family_id="f", role="query", part="learn", category="chairs", seller="s",
        attributes={"colour": "red"}, oracle="colour: red", duplicate_of="q", duplicate_group="g",
        extra={"price": 9.5, "brand": "Acme"}, more_images=(b"second", b"third"),
    )  # fmt: skip
    assert to_listing(record_of(one), Path(tmp_path)) == one
    plain = listing("b", "p")
    assert to_listing(record_of(plain), Path(tmp_path)) == plain


def test_pictures_of_files_and_of_stores_become_bytes(tmp_path):
    folder = write_badge_catalogue(tmp_path / "shop")
    convert(open_rows(folder), tmp_path / "store", Conversion())
    of_files, stored = load_catalogue(folder), load_catalogue(tmp_path / "store")
    for one, other in zip(of_files.listings, stored.listings, strict=True):
        assert record_of(one) == record_of(other)


def test_a_picture_that_is_gone_is_named(tmp_path):
    gone = replace(listing("a", "p"), image=str(tmp_path / "gone.png"))
    with pytest.raises(CatalogueError, match=r"listing 'a'.*gone\.png"):
        list(JoinedCatalogue((Catalogue("c", (gone,)),)).rows())
