from collections import Counter, defaultdict

from afmrl_jax.data.marketplace.plan import PARTS, SPLITS, plan, values_of
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.data.marketplace.world import SHARES, draw_for, residue, seeded, visible_part
from tests.data.marketplace.conftest import tiny


def looks(offers, *splits):
    return {tuple(visible_part(x.combination).items()) for x in offers if x.split in splits}


def test_sizes_are_the_settings(full_plan):
    families = Counter(split for split, _ in {(x.split, x.family_id) for x in full_plan})
    assert families == {"distill": 200, "train": 200, "reward": 150, "test": 1000}
    products = defaultdict(set)
    listings = Counter()
    for x in full_plan:
        if x.duplicate_of is None:
            products[x.family_id].add(x.product_id)
            listings[x.product_id] += 1
    assert {len(x) for x in products.values()} == {2, 3}
    assert set(listings.values()) == {3, 4}
    assert len({x.listing_id for x in full_plan}) == len(full_plan)


def test_no_combination_is_in_two_splits_nor_of_two_products(full_plan):
    found = [looks(full_plan, split) for split in SPLITS]
    assert sum(map(len, found)) == len(set().union(*found))
    own = [x for x in full_plan if x.duplicate_of is None]
    assert sum(map(len, found)) == len({x.product_id for x in own})


def test_splits_of_other_seeds_and_the_stream_are_disjoint_too():
    other = plan(tiny(seed=7))
    stream = [draw_for("stream", seeded(n)) for n in range(50)]
    for offer in other:
        assert residue(offer.combination) in SHARES[offer.split]
    assert all(residue(x) in SHARES["stream"] for x in stream)
    assert residue(Stream(3)[5].attributes) in SHARES["stream"]


def test_every_value_of_the_test_occurs_in_training(full_plan):
    test = values_of(full_plan, "test")
    for split in ("distill", "train"):
        training = values_of(full_plan, split)
        assert all(test[key] <= training[key] for key in test)


def test_twins_share_their_keys_and_differ_in_one_or_two(full_plan):
    families = defaultdict(list)
    for x in full_plan:
        if x.combination not in families[x.family_id]:
            families[x.family_id].append(x.combination)
    changes = Counter()
    for first, *others in families.values():
        for twin in others:
            assert twin.keys() == first.keys()
            assert twin["type"] == first["type"]
            assert visible_part(twin) != visible_part(first)
            changes[sum(twin[key] != first[key] for key in first)] += 1
    assert changes.keys() == {1, 2}


def test_families_and_parts_do_not_mix(full_plan):
    kinds = {(x.family_id, x.split, x.part) for x in full_plan}
    assert len(kinds) == len({x.family_id for x in full_plan})
    parts = Counter(part for _, split, part in kinds if split == "reward")
    assert parts == dict.fromkeys(PARTS, 50)
    assert {part for _, split, part in kinds if split != "reward"} == {None}


def test_sellers_of_a_product_differ(full_plan):
    by_product = defaultdict(list)
    for x in full_plan:
        by_product[x.duplicate_of or x.product_id].append(x.seller.name)
    assert all(len(x) == len(set(x)) for x in by_product.values())


def test_the_share_of_copied_products_is_the_dial_and_only_in_train(full_plan):
    train = {x.product_id for x in full_plan if x.split == "train" and x.duplicate_of is None}
    copied = {x.duplicate_of for x in full_plan if x.duplicate_of}
    assert copied <= train
    assert 0.06 < len(copied) / len(train) < 0.14
    assert not any(x.duplicate_of for x in plan(tiny(duplicate_share=0.0)))
    counts = Counter(x.duplicate_of for x in plan(tiny(duplicate_share=1.0)) if x.duplicate_of)
    assert set(counts.values()) == {2}


def test_a_copy_shows_a_photo_of_its_true_product(full_plan):
    products = {x.listing_id: x.product_id for x in full_plan}
    for x in full_plan:
        if x.duplicate_of:
            assert products[x.copies] == x.duplicate_of
            assert x.product_id != x.duplicate_of


def test_a_shop_may_know_its_duplicates():
    known = plan(tiny(duplicates_known=True, duplicate_share=1.0))
    for x in known:
        true = x.duplicate_of or x.product_id
        assert x.duplicate_group == (true if x.split == "train" else None)
    assert not any(x.duplicate_group for x in plan(tiny()))


def test_a_plan_is_a_function_of_its_settings():
    assert plan(tiny()) == plan(tiny())
    assert looks(plan(tiny())) == looks(plan(tiny(offers=(1, 1))))
    assert plan(tiny()) != plan(tiny(seed=1))
