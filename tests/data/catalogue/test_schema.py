"""Values of strangers: text that can be shown, stored and compared, or an error."""

import datetime
from decimal import Decimal

import pytest

from afmrl_jax.data.catalogue.schema import problem_of, to_listing
from afmrl_jax.errors import CatalogueError

ROW = {"listing_id": "a1", "product_id": "p", "title": "Chair", "image": b"x"}


def listing(**change):
    return to_listing({**ROW, **change}, None)


@pytest.mark.parametrize(
    "value", [{"a": [1]}, [], [None, None], ["red"], b"red", float("nan"), float("inf"), "\ud800"]
)
def test_values_of_attributes_that_are_no_text_are_refused(value):  # W5
    with pytest.raises(CatalogueError, match=r"attribute.*; "):
        listing(attributes={"color": value})


def test_values_of_attributes_that_say_something_are_text():  # W5
    found = listing(
        attributes={
            "Color": "red", "seats": 2, "height": 0.5, "outdoor": True, "none": None, "blank": " ",
            "price": Decimal("9.90"), "since": datetime.date(2020, 1, 2), "a;b": "c:d\x1b\ne",
        }
    ).attributes  # fmt: skip
    assert found == {
        "color": "red", "seats": "2", "height": "0.5", "outdoor": "True", "price": "9.90",
        "since": "2020-01-02", "a,b": "c d  e",
    }  # fmt: skip


@pytest.mark.parametrize(
    "attributes",
    [
        '{"color": "red", "color": "blue"}',
        [("color", "red"), ("color", "blue")],
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": NaN}',
        "{",
        "null",
        ["red"],
        {"\x00": "red"},
    ],
    ids=[*"abcdefghi"],
)
def test_attributes_that_are_no_object_of_single_keys_are_refused(attributes):  # W5, F3
    with pytest.raises(CatalogueError, match=r"'attributes' .*; (write|name) "):
        listing(attributes=attributes)


@pytest.mark.parametrize("name", ["listing_id", "product_id", "family_id", "duplicate_group"])
@pytest.mark.parametrize("value", ["a\x00b", "a\x1b[2Jb", "a\nb", "a\u202eb", "a\ud800b"])
def test_ids_with_control_characters_are_refused(name, value):  # S9, F3
    with pytest.raises(CatalogueError, match=rf"'{name}' has control characters .*; remove") as e:
        listing(**{name: value})
    str(e.value).encode()


def test_titles_are_cleaned_and_right_to_left_ones_survive():  # S9
    found = listing(title="כיסא \u200f\x00עץ\x1b[2J", category="\x07seat", oracle="a: b\x9b")
    assert found.title == "כיסא \u200f עץ [2J"
    assert (found.category, found.oracle) == ("seat", "a: b")
    with pytest.raises(CatalogueError, match="only control characters"):
        listing(title="\x00\x01")
    with pytest.raises(CatalogueError, match="surrogate pair at letter 7; remove"):
        listing(title="Chair \ud800")


@pytest.mark.parametrize("name", ["listing_id", "title", "category"])
def test_truth_values_are_no_text_and_numbers_are(name):  # W5
    assert getattr(listing(**{name: 7}), name) == "7"
    with pytest.raises(CatalogueError, match="is a bool; write text"):
        listing(**{name: True})


def test_names_of_pictures_that_no_file_can_have_are_named(tmp_path):  # F4
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, said in {
        "a\0.png": "null byte",
        "a" * 5000: "name too long",
        "loop.png": "Symlink loop|does not exist",
        "zero.png": "outside the catalogue",
        "gone.png": "does not exist",
    }.items():
        with pytest.raises(CatalogueError, match=f"(?i)picture .*({said}).*; ") as error:
            to_listing({**ROW, "image": name}, tmp_path)
        assert len(str(error.value)) < 250


def test_a_strange_label_does_not_fill_the_message():
    for label in ({"a": [1]}, "x" * 10_000, ["\x1b"]):
        found = str(
            problem_of(CatalogueError("bad; mend it"), {"listing_id": label}, "line 3", "f")
        )
        assert "line 3" in found
        assert len(found) < 150
