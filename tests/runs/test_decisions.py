"""Product ids after a person's decisions."""

import numpy as np
import pytest

from afmrl_jax.data.catalogue.joined import JoinedCatalogue
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.errors import AfmrlError
from afmrl_jax.runs.decisions import Decision, Labels, read_decisions


def catalogue(*products, families=None, splits=None):
    families = families or [None] * len(products)
    splits = splits or ["train"] * len(products)
    listings = [
        Listing(f"l{n}", p, "t", b"", family_id=f, split=s)
        for n, (p, f, s) in enumerate(zip(products, families, splits, strict=True))
    ]
    return Catalogue("c", tuple(listings))


def decisions(*said):
    return [Decision(f"l{a}", f"l{b}", same, n) for n, (a, same, b) in enumerate(said, 2)]


def even(a, b):
    return np.ones(len(a))


def labels(given, *said, likeness=even):
    return Labels(JoinedCatalogue((given,)), decisions(*said), likeness)


def test_nothing_changes_without_decisions():
    found = labels(catalogue("p", "p", "q"))
    assert found.products == ["p", "p", "q"]
    assert found.changed["listings"] == 0


def test_the_same_merges_whole_products():
    found = labels(catalogue("p", "q", "p", "q", "r"), (0, True, 3))
    assert found.products == ["p", "p", "p", "p", "r"]
    assert found.changed == {
        "listings": 2, "products_before": 3, "products_after": 2, "merged": 1, "split": 0,
    }  # fmt: skip


def test_different_divides_a_product_by_likeness():
    positions = np.array([0.0, 1.0, 0.1, 0.9])
    near = lambda a, b: -np.abs(positions[a] - positions[b])  # noqa: E731
    found = labels(catalogue("p", "p", "p", "p"), (0, False, 1), likeness=near)
    assert found.products == ["p", "p~2", "p", "p~2"]
    assert found.changed["split"] == 1


def test_a_new_name_is_none_that_another_product_has():
    found = labels(catalogue("p", "p", "p~2"), (0, False, 1))
    assert found.products == ["p", "p~3", "p~2"]


def test_both_at_once():
    """A product's listing moves to another product."""
    found = labels(catalogue("p", "p", "q", "q"), (0, False, 1), (1, True, 2))
    assert found.products == ["p", "q", "q", "q"] or found.products[1:] == ["p~2"] * 3
    assert found.products[1] == found.products[2] == found.products[3] != found.products[0]


def test_different_products_stay_apart_even_where_a_third_links_them():
    found = labels(catalogue("p", "p", "q", "q"), (0, True, 2), (1, False, 3))
    groups = found.products
    assert groups[0] == groups[2]
    assert groups[1] != groups[3]


def test_contradictions_and_strangers_are_named():
    with pytest.raises(AfmrlError, match=r"line 4 says that 'l0' and 'l2' are different"):
        labels(catalogue("p", "q", "r"), (0, True, 1), (1, True, 2), (0, False, 2))
    with pytest.raises(AfmrlError, match=r"line 2 is about listing 'l9'"):
        labels(catalogue("p", "q"), (0, True, 9))


def test_families_and_splits_follow():
    given = catalogue(
        "p", "p", "q", "r", families=["f", "f", "g", "h"], splits=["train", "train", "test", "test"]
    )
    found = labels(given, (0, True, 2))
    assert found.families == ["f", "f", "f", "h"]
    assert found.splits == ["train", "train", "train", "test"]
    row = found.row(2, {"listing_id": "l2", "split": "test", "duplicate_of": "q"})
    assert row["product_id"] == row["duplicate_of"] == "p"
    assert (row["family_id"], row["split"]) == ("f", "train")


def test_many_random_decisions_are_heeded(rng):
    given = catalogue(*(f"p{n}" for n in rng.integers(0, 12, 60)))
    truth = rng.integers(0, 8, 60)
    pairs = [tuple(rng.choice(60, 2, replace=False)) for _ in range(60)]
    found = labels(given, *((a, truth[a] == truth[b], b) for a, b in pairs)).products
    for a, b in pairs:
        assert (found[a] == found[b]) == (truth[a] == truth[b])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("left_id,decision\na,same\n", "no column 'right_id'"),
        ("left_id,right_id,decision\na,b,perhaps\n", "line 2.*'perhaps'"),
        ("left_id,right_id,decision\na,,same\n", "line 2"),
        (b"\xff\xfe", "cannot be read"),
        ("", "no column"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, text, what):
    path = tmp_path / "review.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AfmrlError, match=what):
        read_decisions(path)


def test_rows_without_a_decision_are_left_out(tmp_path):
    path = tmp_path / "review.csv"
    path.write_text("\ufeffleft_id,right_id,decision\na,b,\nb,c, Same \n", encoding="utf-8")
    assert read_decisions(path) == [Decision("b", "c", True, 3)]
