"""The attribute grammar."""

import os
import time

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import (
    drop_attributes,
    format_attributes,
    is_malformed,
    parse_attributes,
    read_attributes,
    salvage_attributes,
    stated_attributes,
)
from afmrl_jax.errors import CatalogueError


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


@pytest.mark.parametrize(
    ("title", "stated"),
    [
        ("Red dress with a V neck", "collar: v-neck; color: red"),
        ("RED, v-neck!", "collar: v-neck; color: red"),
        ("a hundred dresses", ""),
        ("neck v", ""),
        ("Rouge", ""),
        ("Manches à volants", "sleeve: à volants"),
        ("", ""),
    ],
)
def test_stated_is_what_the_title_says_word_by_word(title, stated):
    text = "collar: v-neck; color: red; sleeve: à volants; trim: --; what"
    assert stated_attributes(text, title) == stated


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


def test_twenty_thousand_pairs_take_no_time_worth_mention():  # F15
    text = format_attributes((f"key {n}", "x") for n in range(20_000))
    began = time.perf_counter()
    assert len(parse_attributes(text)) == 20_000
    assert time.perf_counter() - began < 1
    assert is_malformed(f"{text}; key 7: y")


@pytest.mark.parametrize(
    "line",
    [
        b'{"listing_id": "b", "attributes": 7}',
        b'{"listing_id": "b", "attributes": null}',
        b'{"listing_id": ["b"], "attributes": "a: b"}',
        b'{"listing_id": "b"}',
        b"[]",
        b"7",
        b"{",
        b"\xac",
        b"[" * 100_000,
        b'{"listing_id": "b", "attributes": "a: \\ud800"}',
        b'{"listing_id": "b", "listing_id": "c", "attributes": "a: b"}',
    ],
    ids=lambda x: x[:40].decode(errors="replace"),
)
def test_a_line_that_is_no_record_of_attributes_is_named(tmp_path, line):  # F15
    path = tmp_path / "oracle.jsonl"
    path.write_bytes(b'{"listing_id": "a", "attributes": "a: b"}\n\n' + line + b"\n")
    with pytest.raises(CatalogueError, match=r"oracle\.jsonl, line 3.*; repair"):
        read_attributes(path)


def test_files_of_attributes_that_are_no_files_are_named(tmp_path):  # F17
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "gone", "."):
        with pytest.raises(CatalogueError, match=r"cannot be read|is a pipe or a device"):
            read_attributes(tmp_path / name)


def test_an_id_with_control_characters_is_named_by_its_line(tmp_path):
    path = tmp_path / "attributes.jsonl"
    path.write_text('{"listing_id": "a\\u0000", "attributes": "color: red"}\n')
    with pytest.raises(CatalogueError, match="line 1: control characters in the listing_id"):
        read_attributes(path)
