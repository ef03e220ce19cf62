"""Queries whose answer a list changed, the key that did it, and what lists say."""

from types import SimpleNamespace

import numpy as np
import pytest

from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.evaluation.evaluate import EvaluationData
from afmrl_jax.evaluation.gallery import Change, decisive_keys, find_changes, key_shares

WORDS = ("shirt", "v-neck", "round", "blue", "red")
TEXTS = {
    "a1": "type: shirt; neckline: v-neck; color: blue",
    "a2": "type: shirt; neckline: v-neck; color: red",
    "b1": "type: shirt; neckline: round; color: blue",
}


class Rows:
    """Three listings; a row is a listing and its text."""

    def __init__(self):
        products = {"a1": "a", "a2": "a", "b1": "b"}
        self.listings = [Listing(x, p, "shirt", b"") for x, p in products.items()]

    def embedder(self, place, text):
        return place, text


class BagOfWords:
    """Counts words of a list; the picture is the same for all."""

    def embed_rows(self, builder, rows):
        counts = [[1.0, *((text or "").count(word) for word in WORDS)] for _, text in rows]
        vectors = np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def data(unchecked):
    return EvaluationData(Rows(), SimpleNamespace(listings=[]))


def test_changes_are_found_both_ways(data):
    found = BagOfWords().embed_rows(None, [(n, x) for n, x in enumerate(TEXTS.values())])
    # Without lists a1 and b1 are alike, as are a2 and b1.
    bare = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    true = np.array([[1, 0], [0.9, 0.435], [0, 1]], np.float32)
    changes, asked = find_changes(data, true, bare)
    assert asked == 2  # The other product has one listing.
    assert changes == [Change(0, 1, 2, gained=True), Change(1, 0, 2, gained=True)]
    assert [x.gained for x in find_changes(data, bare, true)[0]] == [False, False]
    assert find_changes(data, found, found)[0] == []


def test_the_key_that_tells_the_two_apart_is_the_decisive_one(data):
    (effects,) = decisive_keys(data, BagOfWords(), TEXTS, [Change(0, 1, 2, gained=True)])
    assert next(iter(effects)) == "neckline"
    assert effects["neckline"] > 0 > effects["color"]
    assert list(effects.values()) == sorted(effects.values(), reverse=True)
    assert decisive_keys(data, BagOfWords(), TEXTS, []) == []


def test_shares_count_a_key_once_a_list(data):
    texts = TEXTS | {"b1": "color: blue; color: red; no colon"}
    assert key_shares(texts, data) == {"color": 100.0, "neckline": 66.67, "type": 66.67}
    assert key_shares({}, data) == {}
