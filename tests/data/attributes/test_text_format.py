"""The attribute grammar."""

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import (
    drop_attributes,
    format_attributes,
    is_malformed,
    parse_attributes,
    salvage_attributes,
)


def test_what_is_formatted_parses_to_the_same_pairs():
    pairs = [("type", "arm chair"), ("dims", "3x4x5"), ("color", "rosé")]
    assert parse_attributes(format_attributes(pairs)) == pairs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "red",
        "color: red; ",
        "color: red; color: blue",
        "color:",
        ": red",
        "Color: red",
        "color: red;; type: chair",
    ],
)
def test_malformed(text):
    assert is_malformed(text)


def test_salvage_keeps_whole_pairs_and_the_first_of_a_key():
    assert salvage_attributes("color: red; Color: blue; what; size:") == "color: red"
    assert salvage_attributes("nothing") == ""
    assert not is_malformed(salvage_attributes("a: b; c"))


def test_drop_keeps_order_and_at_least_one_pair():
    text = "a: 1; b: 2; c: 3; d: 4"
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(300):
        kept = drop_attributes(text, rng, 0.7)
        pairs = parse_attributes(kept)
        assert pairs == [p for p in parse_attributes(text) if p in pairs]
        lengths.append(len(pairs))
    assert min(lengths) == 1
    assert max(lengths) == 4
    assert drop_attributes(text, rng, 0.0) == text
