"""What the embedded catalogue promises."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from afmrl_jax.data import furniture
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.pictures import decode
from afmrl_jax.data.catalogue.records import SPLITS
from afmrl_jax.evaluation.baselines import run_baselines


@pytest.fixture(scope="module")
def catalogue():
    return load_catalogue("furniture")


def test_size(catalogue):
    truth = {x.duplicate_of or x.product_id for x in catalogue.listings}
    families = {x.family_id for x in catalogue.listings}
    assert len(truth) >= 3000
    assert len(families) >= 750
    counts = Counter(x.product_id for x in catalogue.listings if not x.duplicate_of)
    assert set(counts.values()) == {3, 4}
    file = Path(furniture.__file__).parent / "listings.parquet"
    assert file.stat().st_size < 25e6


def test_splits_share_no_family_and_test_has_enough(catalogue):
    families = {s: {x.family_id for x in catalogue.subset(s).listings} for s in SPLITS}
    assert len(set.union(*families.values())) == sum(map(len, families.values()))
    assert len(families["test"]) >= 150
    assert len(families["distill"]) == max(map(len, families.values()))


def test_every_listing_has_what_the_issue_of_measuring_needs(catalogue):
    for x in catalogue.listings:
        assert x.title
        assert x.seller
        assert x.category
        assert 4 <= len(x.attributes) <= 8, x.listing_id


def test_sellers_write_a_product_differently(catalogue):
    titles, pictures = {}, {}
    for x in catalogue.listings:
        titles.setdefault(x.product_id, []).append(x.title)
        pictures.setdefault(x.product_id, []).append(x.image)
    same_title = np.mean([len(set(t)) < len(t) for t in titles.values()])
    assert same_title < 0.3
    assert all(len(set(p)) == len(p) for p in pictures.values())


def test_some_train_products_are_listed_under_a_second_id(catalogue):
    train = catalogue.subset("train").listings
    truth = {x.duplicate_of or x.product_id for x in train}
    second = {x.product_id for x in train if x.duplicate_of}
    assert len(second) / len(truth) == pytest.approx(0.05, abs=0.02)
    assert not any(x.duplicate_of for s in ("reward", "test") for x in catalogue.subset(s).listings)


def test_pictures_decode(catalogue):
    for x in catalogue.listings[::97]:
        assert min(decode(x.read_image_bytes()).size) >= 64


def test_it_cannot_be_solved_without_learning(catalogue):
    found = run_baselines(catalogue.subset("test").listings)
    assert set(found) == {"raw pixels", "colour histogram", "BM25 over titles"}
    for name, scores in found.items():
        assert scores["R@1"] < 35, name


def test_every_creator_is_named():
    text = (Path(furniture.__file__).parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "sweethome3d" in text
    assert text.count("https://") >= 3
    assert text.count("* **") > 50
