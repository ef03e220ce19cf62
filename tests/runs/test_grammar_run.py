"""A generator that can hardly write yet keeps to the grammar of the keys that it was taught."""

import dataclasses
import json

import pytest

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.lists import SAMPLED, WRITTEN
from afmrl_jax.data.attributes.text_format import is_malformed, parse_attributes
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import RunError
from afmrl_jax.inference.annotate import annotate_catalogue
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.generator import Generator
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.training.list_grammar import KEYS, read_keys

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture(scope="module")
def written(tiny_run, tiny_models, tmp_path_factory):
    """A run up to the first lists, after four steps of distillation."""
    folder = tmp_path_factory.mktemp("grammar") / "run"
    config = dataclasses.replace(tiny_run, lists=ListsConfig(samples=2, grammar=True))
    pipeline = Pipeline(folder, config)
    try:
        pipeline.run_to("annotate-distilled")
    finally:
        pipeline.run.close()
    return folder


def lines(path):
    return [json.loads(x) for x in path.read_text().splitlines()]


def keys_in(texts):
    return {key for text in texts for key, _ in parse_attributes(text)}


def test_all_lists_are_whole_and_of_taught_keys(written):
    taught = set(read_keys(written / "distill"))
    greedy = lines(written / "annotate-distilled" / WRITTEN["both"])
    assert not [x for x in greedy if "raw" in x]
    drawn = lines(written / "annotate-distilled" / SAMPLED["both"])
    assert all(len(x["samples"]) == 2 for x in drawn)
    texts = [x["attributes"] for x in greedy] + [y for x in drawn for y in x["samples"]]
    assert not any(map(is_malformed, texts))
    assert set() < keys_in(texts) <= taught


def test_so_are_those_of_anything_else(written, tiny_run, tmp_path):
    run = FinishedRun(written)
    catalogue = load_catalogue(tiny_run.catalogue).subset("test")
    found = annotate_catalogue(run, "distill", catalogue, tmp_path / "lists.jsonl")
    items = [{"image": x.image, "text": x.title} for x in catalogue.listings[:3]]
    again = Generator.of(run, "distill").write(items)
    assert again == [found[x.listing_id] for x in catalogue.listings[:3]]
    assert not any(map(is_malformed, found.values()))


def test_a_run_whose_keys_are_gone_says_so(written, tmp_path):
    (written / "distill" / KEYS).rename(tmp_path / KEYS)
    with pytest.raises(RunError, match=r"keys\.json"):
        Generator.of(FinishedRun(written), "distill")
    (tmp_path / KEYS).rename(written / "distill" / KEYS)
