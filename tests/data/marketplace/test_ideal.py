import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from afmrl_jax.data.marketplace.ideal import (
    KS,
    TASKS,
    evidence,
    expected,
    ideal_values,
    known_of,
)
from afmrl_jax.data.marketplace.listings import title_of
from afmrl_jax.data.marketplace.world import ATTRIBUTES, VISIBLE
from afmrl_jax.evaluation import tasks as evaluation
from tests.data.marketplace.conftest import tiny


def told(view, combination, stated):
    """What a view tells, as a dictionary; an attribute that does not apply is None."""
    keys = {"text": set(stated), "image": set(VISIBLE), "both": set(stated) | set(VISIBLE)}[view]
    return {key: combination.get(key) for key in keys}


def twin_scores(query, gallery):
    """The same as `evidence`, pair by pair."""
    out = []
    for other in gallery:
        common = query.keys() & other.keys()
        agree = all(query[key] == other[key] for key in common)
        weights = [round(1024 * np.log(len(ATTRIBUTES[key].values))) for key in common]
        out.append(sum(weights) if agree else -np.inf)
    return np.array(out)


def by_permutation(scores, own):
    """R@k and reciprocal rank, averaged over all orders of the tied listings."""
    recalls, reciprocals = [], []
    for order in itertools.permutations(range(len(scores))):
        place = sorted(range(len(scores)), key=lambda i: (-scores[i], order[i]))
        rank = 1 + min(place.index(i) for i in np.flatnonzero(own))
        recalls.append([rank <= k for k in KS])
        reciprocals.append(1 / rank)
    return np.mean(recalls, axis=0), np.mean(reciprocals)


@pytest.mark.parametrize("seed", range(6))
def test_expectations_are_those_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, 7).astype(float)
    own = np.zeros(7, bool)
    own[rng.permutation(7)[: 1 + seed % 3]] = True
    best = scores[own].max()
    found = expected(
        int((scores > best).sum()), int((scores == best).sum()), int((own & (scores == best)).sum())
    )
    recall, reciprocal = by_permutation(scores, own)
    np.testing.assert_allclose(found[0], recall, atol=1e-9)
    np.testing.assert_allclose(found[1], reciprocal, atol=1e-9)


@pytest.fixture(scope="module")
def test_split(offers, settings):
    listings = [x for x in offers if x.split == "test"]
    return SimpleNamespace(
        combinations=[x.combination for x in listings],
        stated=[title_of(x, settings).stated for x in listings],
        products=[x.product_id for x in listings],
    )


def test_the_ideal_is_that_of_a_brute_force_search(test_split):
    x = test_split
    found = ideal_values(known_of(x.combinations, x.stated), x.products)
    assert found["gallery"] == len(x.products)
    products = np.array(x.products)
    for name, (query, gallery) in TASKS.items():
        sides = [told(gallery, *each) for each in zip(x.combinations, x.stated, strict=True)]
        values = []
        for place, product in enumerate(products):
            rest = np.arange(len(products)) != place
            asked = told(query, x.combinations[place], x.stated[place])
            scores = twin_scores(asked, [y for y, kept in zip(sides, rest, strict=True) if kept])
            own = (products == product)[rest]
            best = scores[own].max()
            # With one tied group, R@1 is the share of the product in it.
            first = own[scores == best].mean() if not (scores > best).any() else 0.0
            values.append(100 * first)
        assert found["tasks"][name]["ideal"]["R@1"] == pytest.approx(np.mean(values), abs=2e-3)


def test_a_photo_tells_products_apart_and_a_title_does_not(test_split):
    x = test_split
    tasks = ideal_values(known_of(x.combinations, x.stated), x.products)["tasks"]
    for name in ("fine", "image_to_image", "image_to_multimodal"):
        assert tasks[name]["ideal"]["R@1"] == 100.0
    words = tasks["text_to_image"]
    assert words["chance"]["R@1"] < words["ideal"]["R@1"] < 100.0
    assert words["ideal"]["R@1"] < words["ideal"]["R@5"] <= words["ideal"]["R@10"]


def test_chance_is_the_share_of_the_products_listings():
    known = known_of([{"type": "skirt"}] * 6, [()] * 6)
    found = ideal_values(known, list("aaabbc"))
    # Queries of a have 2 of 5, those of b 1 of 5; c has nothing to find.
    wanted = 100 * (3 * 2 / 5 + 2 * 1 / 5) / 5
    assert found["queries"] == 5
    assert found["tasks"]["fine"]["chance"]["R@1"] == pytest.approx(wanted, abs=1e-3)
    assert found["tasks"]["text_to_image"]["ideal"]["R@1"] == pytest.approx(wanted, abs=1e-3)


def test_what_only_one_side_tells_is_no_contradiction():
    known = known_of(
        [{"type": "skirt", "material": "silk"}, {"type": "skirt", "material": "wool"}],
        [("material",), ("type",)],
    )
    assert np.isfinite(evidence(known.both[:1], known.both[1:])).all()
    assert np.isneginf(
        evidence(known.text[:1], known_of([{"material": "wool"}], [("material",)]).text)
    )


def test_tasks_have_the_views_of_the_evaluation():
    theirs = {x.name: (x.query, x.gallery) for x in evaluation.RETRIEVAL if x.label == "product"}
    assert theirs == TASKS


def test_titles_that_state_all_leave_nothing_to_chance(offers):
    settings = tiny(title_share=(1.0, 1.0))
    test = [x for x in offers if x.split == "test"]
    known = known_of([x.combination for x in test], [title_of(x, settings).stated for x in test])
    found = ideal_values(known, [x.product_id for x in test])
    assert found["tasks"]["text_to_image"]["ideal"]["R@1"] == 100.0
