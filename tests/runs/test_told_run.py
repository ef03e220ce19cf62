"""A run with every kind of list, with views and with controls."""

import dataclasses
import itertools
import json

import pytest

from afmrl_jax.config import ListsConfig, ViewShares
from afmrl_jax.data.attributes.lists import SAMPLED, WRITTEN, read_samples
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs.evaluate import evaluate
from afmrl_jax.runs.pipeline import Pipeline

pytestmark = [pytest.mark.usefixtures("tiny_models"), pytest.mark.slow]


@pytest.fixture(scope="module")
def told(tiny_run, tiny_models, tmp_path_factory):
    """Its folder and settings."""
    folder = tmp_path_factory.mktemp("told") / "run"
    agcl = dataclasses.replace(tiny_run.agcl, views=ViewShares(0.2, 0.2, 0.2, 0.2, 0.2))
    config = dataclasses.replace(
        tiny_run,
        distill=dataclasses.replace(tiny_run.distill, title_dropout=0.3, picture_dropout=0.3),
        lists=ListsConfig(lone=True, samples=2),
        agcl=agcl,
        controls=True,
    )
    Pipeline(folder, config).execute()
    return folder, config


def test_controls_are_rows_apart_from_the_steps(told):
    folder, _ = told
    evaluation = json.loads((folder / "evaluation.json").read_text())
    steps = ["infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit"]
    controls = ["agcl+shuffled", "agcl+distilled-bare"]
    old = "afmrl+cit-old-lists"
    names = [*steps[:3], *controls, steps[3], old, steps[4]]
    assert [row["name"] for row in evaluation["rows"]] == names
    pairs = [(x["from"], x["to"]) for x in evaluation["comparisons"]]
    ladder = [*itertools.pairwise(steps), ("infonce", "agcl+distilled")]
    told = [(x, "agcl+distilled") for x in controls]
    assert pairs == [*ladder, *told, (old, "afmrl+cit")]
    assert FinishedRun(folder).system().name == "afmrl+cit"
    assert "agcl+shuffled" in (folder / "report.html").read_text()


def test_every_kind_of_list_is_written_for_those_who_read_it(told, tiny_run):
    folder, _ = told
    splits = {x.listing_id: x.split for x in load_catalogue(tiny_run.catalogue).listings}
    whole = {"train", "reward", "test"}
    for stage, missing in (("annotate-distilled", set()), ("annotate-reinforced", {"reward"})):
        for shown in ("both", "image", "text"):
            written = read_attributes(folder / stage / WRITTEN[shown])
            expected = whole - missing if shown == "both" else {"train", "test"}
            assert {splits[x] for x in written} == expected
            drawn = read_samples(folder / stage / SAMPLED[shown])
            assert {splits[x] for x in drawn} == {"train"}
    done = json.loads((folder / "agcl-distilled" / "DONE.json").read_text())
    assert len(done["inputs"]["more_lists"]["annotate-distilled"]) == 5
    for stage in ("infonce", "agcl"):
        assert "more_lists" not in (folder / stage / "DONE.json").read_text()


def test_it_is_finished_and_can_be_evaluated_once_more(told, tmp_path, capsys):
    folder, config = told
    Pipeline(folder, config).execute()
    assert "already finished, nothing to do" in capsys.readouterr().err
    found = evaluate(FinishedRun(folder), config.catalogue, "test", tmp_path / "again.json")
    own = json.loads((folder / "evaluation.json").read_text())
    for here, there in zip(found["rows"], own["rows"], strict=True):
        for task in ("fine", "text_to_image", "image_to_multimodal"):
            assert here[task] == there[task], (here["name"], task)


def test_items_with_words_or_a_picture_alone_are_told_too(told, badge_listings):
    folder, _ = told
    embedder = Embedder.load(folder)
    picture = badge_listings[0].read_image_bytes()
    items = [{"text": "red badge"}, {"image": picture}, {"text": "red badge", "image": picture}]
    written = embedder.generator.write(items)
    assert len(written) == 3
    assert embedder.generator.write([items[0]]) == written[:1]
    vectors, read = embedder.encode_with_attributes(items)
    assert read == written
    assert vectors.shape == (3, embedder.dim)
