"""Agreement of attribute lists, against a loop over dictionaries."""

import numpy as np
import pytest

from afmrl_jax.matching.lists import AttributeTable, Vocabulary, read_pairs


def obvious(one, other):
    left, right = (
        {k: " ".join(v.casefold().split()) for k, v in read_pairs(x)} for x in (one, other)
    )
    common = left.keys() & right.keys()
    agree = sum(left[k] == right[k] for k in common)
    return agree, len(common) - agree


def drawn(rng, count):
    words = ["oak", "Oak", "dark  oak", "red", "steel"]
    out = []
    for _ in range(count):
        keys = rng.permutation(["color", "type", "frame", "seat"])[: rng.integers(0, 5)]
        out.append("; ".join(f"{k}: {words[rng.integers(len(words))]}" for k in keys))
    return out


def test_counts_are_those_of_a_loop_also_between_two_tables(rng):
    texts, others = drawn(rng, 30), drawn(rng, 20)
    vocabulary = Vocabulary()
    one = AttributeTable(texts, vocabulary)
    left, right = rng.integers(0, 30, 200), rng.integers(0, 30, 200)
    for table, names in ((one, texts), (AttributeTable(others, vocabulary), others)):
        right = right % len(table)
        found = one.compare(left, table, right)
        wanted = [obvious(texts[a], names[b]) for a, b in zip(left, right, strict=True)]
        np.testing.assert_array_equal(np.stack(found, axis=1), wanted)


@pytest.mark.parametrize("texts", [["", ""], ["color red; Type: chair", "color red"]])
def test_listings_without_a_list_or_with_a_broken_one(texts):
    table = AttributeTable(texts)
    agree, differ = table.compare([0], table, [1])
    assert (agree[0], differ[0]) == (0, 0)


def test_what_a_malformed_list_says_counts():
    table = AttributeTable(["color: red; nonsense", "color: red; color: blue"])
    assert table.compare([0], table, [1])[0][0] == 1
