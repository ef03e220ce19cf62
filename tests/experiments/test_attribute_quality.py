"""What the study of lists counts: keys, values, and finds with lists on one side or on both."""

import numpy as np

from afmrl_jax.data.catalogue.records import Listing
from experiments.studies.attribute_quality import accuracy, recall_by_sides, true_values


def test_accuracy_counts_listings_that_have_a_key():
    listings = [
        Listing("a", "a", "", b"", attributes={"hem": "slit", "color": "red"}),
        Listing("b", "b", "", b"", attributes={"hem": "curved", "color": "blue"}),
        Listing("c", "c", "", b"", attributes={"color": "pink"}),
    ]
    texts = {"a": "hem: slit; color: red", "b": "color: green; size: L", "c": ""}
    assert accuracy(listings, texts) == {
        "color": {"right": 0.5, "written": 2, "of": 3},
        "hem": {"right": 1.0, "written": 1, "of": 2},
    }


def test_true_values_keep_the_keys_and_their_order():
    truth = {"color": "red", "hem": "slit", "sleeve": "long"}
    assert true_values("hem: curved; size: L; color: red", truth) == "hem: slit; color: red"
    assert true_values("size: L", truth) == ""


def test_recall_by_sides_is_that_of_each_query_by_itself():
    rng = np.random.default_rng(0)
    listings = [
        Listing(f"{product}-{n}", str(product), "", b"", part="learn" if n == 2 else None)
        for product in range(5)
        for n in range(3)
    ]
    vectors = {x: rng.normal(size=(15, 4)).astype(np.float32) for x in ("none", "truth")}
    vectors = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in vectors.items()}
    found = recall_by_sides(vectors, listings)
    for query, rows in vectors.items():
        for gallery, others in vectors.items():
            hits = []
            for n, x in enumerate(listings):
                if x.part == "learn":
                    continue
                scores = others @ rows[n]
                scores[n] = -np.inf
                hits.append(listings[int(scores.argmax())].product_id == x.product_id)
            assert found[query][gallery] == round(100 * float(np.mean(hits)), 2)
    assert found["none"]["truth"] != found["truth"]["none"]
