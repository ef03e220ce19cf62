"""The lists of listings: what is read, what takes its place, and the lists of other products."""

import json
from collections import Counter

import numpy as np
import pytest

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.lists import SAMPLED, WRITTEN, Lists, read_samples
from afmrl_jax.data.attributes.shuffled import donors_of, shuffled_lists
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError


def write(path, records):
    path.write_text("".join(f"{json.dumps(x)}\n" for x in records))


def test_a_folder_is_read_as_its_settings_say(tmp_path):
    for shown in ("both", "image", "text"):
        write(tmp_path / WRITTEN[shown], [{"listing_id": "a", "attributes": f"seen: {shown}"}])
        write(tmp_path / SAMPLED[shown], [{"listing_id": "a", "samples": [f"seen: {shown}"] * 2}])
    plain = Lists.read(tmp_path, ListsConfig())
    assert (plain.both, plain.image, plain.text) == ({"a": "seen: both"}, {}, {})
    assert not plain.samples
    lone = Lists.read(tmp_path, ListsConfig(lone=True))
    assert lone.of("image") == {"a": "seen: image"}
    assert lone.of("text") == {"a": "seen: text"}
    assert not lone.samples
    every = Lists.read(tmp_path, ListsConfig(lone=True, samples=2))
    assert every.samples["text"] == {"a": ["seen: text", "seen: text"]}


@pytest.mark.parametrize(
    "record", [{"listing_id": "a"}, {"listing_id": "a", "samples": "x: y"}, {"samples": [1]}]
)
def test_a_file_of_samples_that_is_none_is_named(tmp_path, record):
    path = tmp_path / "stage" / "samples.jsonl"
    path.parent.mkdir()
    with pytest.raises(CatalogueError, match=r"samples\.jsonl is missing; delete .*stage"):
        read_samples(path)
    write(path, [{"listing_id": "z", "samples": []}, record])
    with pytest.raises(CatalogueError, match=r"line 2: not a record .*delete .*stage"):
        read_samples(path)


def test_a_listing_without_samples_has_its_greedy_list(rng):
    lists = Lists({"a": "x: greedy", "b": ""}, samples={"both": {"a": [], "b": ["x: drawn"]}})
    assert {lists.draw("a", "both", rng) for _ in range(20)} == {"x: greedy"}
    assert {lists.draw("b", "both", rng) for _ in range(20)} == {"", "x: drawn"}
    assert lists.draw("a", "image", rng) is None
    assert lists.draw("c", "both", rng) is None


def test_newer_lists_take_the_place_of_those_of_some_listings():
    old = Lists({"a": "1", "b": "1"}, {"a": "1"}, samples={"both": {"a": ["1"], "b": ["1"]}})
    new = Lists({"a": "2", "b": "2"}, {"a": "2"}, samples={"both": {"a": ["2"]}})
    found = old.with_newer(new, ["a", "c"])
    assert found.both == {"a": "2", "b": "1"}
    assert found.image == {"a": "2"}
    assert found.samples == {"both": {"a": ["2"], "b": ["1"]}}


def listings(count, of_product=3, **fields):
    return [Listing(f"l{n}", f"p{n // of_product}", "title", b"", **fields) for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_no_listing_keeps_its_products_lists_and_no_product_passes_on_two(seed):
    found = listings(300)
    donors = donors_of(found, seed)
    assert sorted(donors) == list(range(300))
    own = np.arange(300) // 3
    assert (own[donors] != own).all()
    given = Counter(zip(own.tolist(), own[donors].tolist(), strict=True))
    assert set(given.values()) == {1}
    np.testing.assert_array_equal(donors, donors_of(found, seed))
    assert (donors != donors_of(found, seed + 1)).any()


def test_duplicates_are_no_other_product():
    known = [
        Listing(f"l{n}", f"p{n // 3}", "", b"", duplicate_group="twins" if n < 12 else None)
        for n in range(40)
    ]
    donors = donors_of(known, 0)
    assert (donors[:12] >= 12).all()
    true = [Listing(x.listing_id, x.product_id, "", b"", duplicate_of="one") for x in known[:12]]
    assert (donors_of([*true, *known[12:]], 0)[:12] >= 12).all()


def test_all_kinds_of_lists_go_to_the_same_listing():
    found, ids = listings(30), [f"l{n}" for n in range(30)]
    own = Lists(
        {x: f"both {x}" for x in ids},
        {x: f"image {x}" for x in ids[:20]},
        samples={"both": {x: [f"sample {x}"] for x in ids}},
    )
    other = shuffled_lists(own, found, 0)
    donors = donors_of(found, 0)
    for n, donor in enumerate(donors):
        assert other.both[f"l{n}"] == f"both l{donor}"
        assert other.image.get(f"l{n}") == (f"image l{donor}" if donor < 20 else None)
        assert other.samples["both"][f"l{n}"] == [f"sample l{donor}"]


def test_a_few_products_still_never_meet_themselves():
    donors = donors_of(listings(6), 0)
    assert {n // 3 for n in donors[:3]} == {1}


def test_one_product_has_no_other():
    with pytest.raises(CatalogueError, match="1 products are too few"):
        donors_of(listings(3), 0)
