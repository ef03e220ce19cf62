import numpy as np
import pytest

from afmrl_jax.data.marketplace.world import (
    ABSENT,
    ATTRIBUTES,
    HIDDEN,
    SHARES,
    VISIBLE,
    allowed,
    draw_combination,
    draw_for,
    is_valid,
    residue,
    seeded,
    visible_part,
)


@pytest.fixture(scope="module")
def combinations():
    return [draw_combination(seeded("world", n)) for n in range(3000)]


def test_a_world_of_many_attributes_most_of_them_visible():
    assert len(VISIBLE) >= 10
    assert set(HIDDEN) == ATTRIBUTES.keys() - set(VISIBLE)
    for about in ATTRIBUTES.values():
        assert 4 <= len(set(about.values)) <= 14
    assert {x for about in ATTRIBUTES.values() for x in about.values} >= ABSENT


def test_drawn_combinations_are_valid_and_hold_every_value(combinations):
    assert all(map(is_valid, combinations))
    for key, about in ATTRIBUTES.items():
        assert {x[key] for x in combinations if key in x} == set(about.values)


def test_what_is_missing_or_does_not_apply_is_not_valid():
    skirt = next(x for x in map(_drawn, range(100)) if x["type"] == "skirt")
    assert not is_valid(skirt | {"sleeve": "long"})
    assert not is_valid(skirt | {"color": "puce"})
    assert not is_valid({key: x for key, x in skirt.items() if key != "trim"})
    assert not is_valid(skirt | {"price": "low"})


def _drawn(number):
    return draw_combination(seeded(number))


def test_two_colors_differ_and_plain_fabric_has_one(combinations):
    for x in combinations:
        assert x.get("accent") != x["color"]
        assert ("accent" in x) == (x["pattern"] != "plain")


def test_allowed_values_depend_on_those_before():
    assert allowed("sleeve", {"type": "trousers"}) == ()
    assert allowed("closure", {"type": "shirt", "length": "cropped", "hem": "straight"}) == ()
    assert "kangaroo" not in allowed("pocket", {"type": "skirt", "length": "long"})


def test_every_part_of_the_hash_belongs_to_one_share():
    parts = [part for share in SHARES.values() for part in share]
    assert sorted(parts) == list(range(16))


def test_the_hash_spreads_evenly_and_is_stable(combinations):
    counts = np.bincount([residue(x) for x in combinations], minlength=16)
    assert counts.min() > 130
    one = {"type": "skirt", "length": "long", "color": "red"}
    assert residue(one) == 14
    assert residue(one | {"material": "wool"}) == residue(one)


@pytest.mark.parametrize("share", SHARES)
def test_a_draw_for_a_share_lies_in_it(share):
    assert all(residue(draw_for(share, seeded(n))) in SHARES[share] for n in range(20))


def test_photos_show_all_but_what_is_hidden(combinations):
    assert all(visible_part(x).keys() == x.keys() - set(HIDDEN) for x in combinations[:50])
