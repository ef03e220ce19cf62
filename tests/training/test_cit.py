"""Which listings take the reinforced G's attributes, cycle by cycle."""

import dataclasses

import numpy as np
import pytest

from afmrl_jax.config import CitConfig, RunConfig
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.sources.sampler import PairSampler
from afmrl_jax.training.cit import (
    annotation_order,
    cit_seed,
    cycle_attributes,
    difference,
    listings_to_annotate,
)

IDS = [f"l{n}" for n in range(10)]
BEFORE = dict.fromkeys(IDS, "color: red; size: xl")
AFTER = BEFORE | {"l3": "color: blue", "l7": "color: red"}


def config(**cit):
    return dataclasses.replace(RunConfig(), cit=CitConfig(**cit))


def taken(settings, cycle):
    found = cycle_attributes(
        settings, cycle, IDS, Lists(BEFORE), Lists(dict.fromkeys(IDS, "new: yes"))
    ).both
    assert list(found) == IDS
    return {i for i, text in found.items() if text == "new: yes"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a: 1; b: 2", "b: 2; a: 1", 0.0),
        ("a: 1; b: 2", "a: 1", 0.5),
        ("a: 1", "b: 1", 1.0),
        ("", "", 0.0),
    ],
)
def test_difference_of_lists(before, after, expected):
    assert difference(before, after) == expected


def test_those_that_changed_most_come_first():
    order = annotation_order(config(choice="difference"), IDS, BEFORE, AFTER)
    assert [IDS[i] for i in order[:2]] == ["l3", "l7"]
    assert sorted(order.tolist()) == list(range(10))
    settings = config(choice="difference", share=0.1)
    found = cycle_attributes(settings, 1, IDS, Lists(BEFORE), Lists(AFTER))
    assert found.both == BEFORE | {"l3": "color: blue"}


def test_every_cycle_takes_a_further_share():
    settings = config(cycles=3, share=0.3, choice="random")
    shares = [taken(settings, cycle) for cycle in (1, 2, 3)]
    assert [len(x) for x in shares] == [3, 6, 9]
    assert shares[0] < shares[1] < shares[2]
    # What some cycle takes is annotated, and nothing else.
    assert {IDS[i] for i in listings_to_annotate(settings, 10)} == shares[2]


def test_cycles_draw_batches_of_their_own(badge_listings):
    seeds = [cit_seed(config(cycles=3), cycle) for cycle in (1, 2, 3)]
    assert len({RunConfig().seed, *seeds}) == 4
    # A run of an older version goes on with the batches that it began with.
    old = config(cycles=3, fresh_batches=False)
    assert {cit_seed(old, cycle) for cycle in (1, 2, 3)} == {old.seed}
    products = [x.product_id for x in badge_listings]
    drawn = [
        PairSampler(products, products, batch_size=8, sibling_share=0.0, seed=x).draw(0)
        for x in (0, seeds[0])
    ]
    assert (drawn[0][0] != drawn[1][0]).any()


def test_all_are_annotated_where_rar_comes_in_between():
    settings = config(choice="random", cycles=2, rar_between=True)
    assert listings_to_annotate(settings, 10).tolist() == list(range(10))


def test_all_are_annotated_where_the_difference_decides():
    assert listings_to_annotate(config(choice="difference"), 10).tolist() == list(range(10))


def test_more_cycles_than_listings_take_all():
    settings = config(cycles=9, share=0.5)
    assert len(taken(settings, 9)) == 10
    np.testing.assert_array_equal(listings_to_annotate(settings, 10), np.arange(10))
