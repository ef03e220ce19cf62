"""Lists that a generator samples, and those it writes for a lone picture or title."""

import dataclasses
import json

import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, ListsConfig, TextBudget
from afmrl_jax.data.attributes.lists import read_samples
from afmrl_jax.data.attributes.text_format import is_malformed, read_attributes
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.testing import tiny_config
from afmrl_jax.training import annotate as annotating
from afmrl_jax.training import sampled_lists
from afmrl_jax.training.annotate import annotate
from afmrl_jax.training.sampled_lists import sample_lists

SAMPLED = ListsConfig(samples=3, temperature=1.0)
CHOSEN = [3, 4, 8, 11, 2]


@pytest.fixture
def builder(badge_listings, tokenizer):
    text = TextBudget(max_title_tokens=9, max_attribute_tokens=6)
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), text)


@pytest.fixture(scope="module")
def generator(tokenizer):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen2_5_vl", **ids))
    return architecture, architecture.init(1)


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    """Two listings at a time, so that there are batches, and one program for all tests."""
    monkeypatch.setattr(sampled_lists, "CONTINUATIONS", 6)


@pytest.fixture
def spoken(monkeypatch):
    """Texts of the generator as they are: none of random weights is a list."""
    monkeypatch.setattr(annotating, "salvage_attributes", lambda x: x or "-")
    monkeypatch.setattr(annotating, "stated_attributes", lambda text, title: text)


def sampled(generator, builder, out, chosen=CHOSEN, *, seed=0, mesh=(1, 1), lists=SAMPLED):
    mesh = make_mesh(*mesh)
    sample_lists(*generator, builder, chosen, out, lists, seed=seed, mesh=mesh, label="samples")
    return read_samples(out)


@pytest.mark.usefixtures("spoken")
def test_each_listing_has_its_samples_whoever_else_is_in_the_batch(generator, builder, tmp_path):
    found = sampled(generator, builder, tmp_path / "a.jsonl")
    ids = [builder.listings[n].listing_id for n in CHOSEN]
    assert list(found) == ids
    assert {len(x) for x in found.values()} == {3}
    assert len({tuple(x) for x in found.values()}) == len(CHOSEN)
    assert all(len(set(x)) > 1 for x in found.values())
    alone = sampled(generator, builder, tmp_path / "b.jsonl", [8])
    assert alone == {ids[2]: found[ids[2]]}
    assert sampled(generator, builder, tmp_path / "c.jsonl", seed=1) != found


@pytest.mark.usefixtures("spoken")
def test_a_killed_run_ends_with_the_same_samples(generator, builder, tmp_path, monkeypatch):
    whole = sampled(generator, builder, tmp_path / "whole.jsonl")
    plain, count = sampled_lists.completion_texts, iter(range(9))

    def dying(*arguments):
        if next(count) == 2:
            raise KeyboardInterrupt
        return plain(*arguments)

    out = tmp_path / "killed.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(sampled_lists, "completion_texts", dying)
        with pytest.raises(KeyboardInterrupt):
            sampled(generator, builder, out)
    assert not out.exists()
    (left,) = tmp_path.glob("killed*.partial")
    assert len(left.read_text().splitlines()) == 4
    assert sampled(generator, builder, out) == whole
    assert not left.exists()


@pytest.mark.usefixtures("spoken")
def test_devices_that_share_the_listings_draw_the_same(generator, builder, tmp_path):
    one = sampled(generator, builder, tmp_path / "one.jsonl")
    assert sampled(generator, builder, tmp_path / "two.jsonl", mesh=(2, 1)) == one


def test_what_cannot_be_read_of_a_sample_is_left_out(generator, builder, tmp_path):
    found = sampled(generator, builder, tmp_path / "a.jsonl")
    assert all(not is_malformed(x) for texts in found.values() for x in texts)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(lines[0]).keys() == {"listing_id", "samples"}


@pytest.mark.parametrize("malformed", [False, True])
def test_of_a_title_alone_a_list_keeps_what_the_title_says(
    generator, builder, tmp_path, monkeypatch, malformed
):
    titles = ["circle badge", "a red thing", "badges", "Badge, enamel", ""]
    for number, title in zip(CHOSEN, titles, strict=True):
        listings = list(builder.listings)
        listings[number] = dataclasses.replace(listings[number], title=title)
        builder = dataclasses.replace(builder, listings=listings)
    whole = "type: badge; color: red"
    text = whole + ("; and" if malformed else "")

    def said(generation, tokenizer):
        count = generation.tokens.shape[0] * generation.tokens.shape[1]
        return [text] * count, np.full(count, malformed)

    for module in (annotating, sampled_lists):
        monkeypatch.setattr(module, "completion_texts", said)
    for shown in ("text", "image", "both"):
        out = tmp_path / f"{shown}.jsonl"
        found = annotate(
            *generator, builder.showing(shown), CHOSEN, out, mesh=make_mesh(1, 1), batch_size=4
        )
        stated = ["type: badge", "color: red", "", "type: badge", ""]
        assert list(found.values()) == (stated if shown == "text" else [whole] * len(CHOSEN))
        records = [json.loads(x) for x in out.read_text().splitlines()]
        assert [x.get("raw") for x in records] == [text if malformed else None] * len(CHOSEN)
        several = sampled(generator, builder.showing(shown), tmp_path / f"{shown}-samples.jsonl")
        assert list(several.values()) == [[x] * 3 if x else [] for x in found.values()]


def other_titles(builder):
    renamed = [dataclasses.replace(x, title="quite another thing") for x in builder.listings]
    return RowBuilder.of(renamed, builder.tokenizer, builder.image, builder.text)


def other_pictures(builder):
    images = [x.image for x in builder.listings]
    swapped = [
        dataclasses.replace(x, image=image)
        for x, image in zip(builder.listings, images[7:] + images[:7], strict=True)
    ]
    return RowBuilder.of(swapped, builder.tokenizer, builder.image, builder.text)


@pytest.mark.usefixtures("spoken")
@pytest.mark.parametrize(
    ("shown", "hidden", "changed"),
    [("image", other_titles, other_pictures), ("text", other_pictures, other_titles)],
)
def test_a_lone_side_writes_without_knowing_the_other(
    generator, builder, tmp_path, shown, hidden, changed
):
    mesh = make_mesh(1, 1)

    def written(source, name):
        rows = source.showing(shown)
        annotate(*generator, rows, CHOSEN, tmp_path / f"{name}.jsonl", mesh=mesh, batch_size=2)
        sampled(generator, rows, tmp_path / f"{name}-samples.jsonl")
        greedy = read_attributes(tmp_path / f"{name}.jsonl")
        return greedy, read_samples(tmp_path / f"{name}-samples.jsonl")

    own = written(builder, "own")
    assert written(hidden(builder), "hidden") == own
    assert written(changed(builder), "changed") != own


def test_a_prompt_shows_what_it_is_told_to(builder):
    whole, picture, title = (builder.showing(x).prompt(5) for x in ("both", "image", "text"))
    pad, decode = builder.tokenizer.image_pad_id, builder.tokenizer.decode
    assert whole.tokens.count(pad) == picture.tokens.count(pad) > 0
    assert pad not in title.tokens
    assert not title.pictures
    assert decode(title.tokens) == decode(whole.tokens) != ""
    assert decode(picture.tokens) == ""


def test_settings_reach_the_sampling(generator, builder, tmp_path, monkeypatch):
    asked = {}

    class Seen(Exception):
        pass

    def recorded(*_, **options):
        asked.update(options)
        raise Seen

    monkeypatch.setattr(sampled_lists, "generate", recorded)
    lists = ListsConfig(samples=2, temperature=0.375)
    with pytest.raises(Seen):
        sampled(generator, builder, tmp_path / "a.jsonl", np.array(CHOSEN), lists=lists)
    assert (asked["group_size"], asked["temperature"]) == (2, 0.375)
