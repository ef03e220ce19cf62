"""Conditions: a small grammar, no surprises."""

import numpy as np
import pytest

from afmrl_jax.errors import InputError
from afmrl_jax.runs.living.filters import Column, Condition, cell_of, parse_where

LINE = {
    "listing_id": "a-1",
    "title": "Oak Chair",
    "attributes": "color: light oak; type: chair",
    "extra": {"price": 49.9, "stock": "12", "brand": "Acme", "sale": True, "price < list": "yes"},
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("price<50", True),
        ("price < 49.9", False),
        ("price<=49.9", True),
        ("price>=4.99e1", True),
        ("price=49.90", True),
        ("stock>9", True),
        ("stock=12.0", True),
        ("brand=Acme", True),
        ("brand=acme", False),
        ("brand!=Acme", False),
        ("brand!=Other", True),
        ("brand<50", False),
        ("sale=true", True),
        ("sale>0", False),
        ("title~oak", True),
        ("title~ash", False),
        ("listing_id=a-1", True),
        ("attributes.color=light oak", True),
        ("attributes.color~OAK", True),
        ("attributes.size=1", False),
        ("size!=1", False),
        ("brand=", False),
        ("brand=a=b", False),
    ],
)
def test_what_fits(text, fits):
    condition = Condition.parse(text)
    assert condition.fits(cell_of(LINE, condition.name)) is fits


@pytest.mark.parametrize(
    "text",
    ["", "price", "<50", "=", "price<cheap", "price<nan", "price<inf", "price<1e999", "a" * 600],
)
def test_what_cannot_be_read_says_how_to_write_it(text):
    with pytest.raises(InputError, match="write NAME OPERATOR VALUE"):
        Condition.parse(text)


def test_too_many_conditions():
    with pytest.raises(InputError, match="17 conditions"):
        parse_where(["a=1"] * 17)


def test_a_column_is_its_cells(rng):
    cells = [None, 3, "3", "three", 3.5, True, False, "", "-1e3"]
    column = Column.of(cells)
    for text in ("a=3", "a!=3", "a<3.2", "a>=3", "a~E", "a=true", "a=", "a<0"):
        condition = Condition.parse(text)
        found = condition.fit(column).tolist()
        assert found == [x is not None and condition.fits(x) for x in cells], text
    assert np.isnan(column.numbers[5])
