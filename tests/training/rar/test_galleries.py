"""A stage whose generator annotates its gallery: what it leaves; it resumes bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from afmrl_jax.config import (
    ImageConfig,
    MeshConfig,
    OptimizerConfig,
    RarConfig,
    RunConfig,
    TextBudget,
)
from afmrl_jax.data.attributes.lists import read_samples
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.testing import tiny_config
from afmrl_jax.training import loop
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.stage import train_rar

RAR = RarConfig(
    steps=5,
    queries=2,
    candidates=3,
    group_size=2,
    baseline="greedy",
    live_by="rank",
    reward="margin",
    constrained=True,
    temperature=1.5,
    judged="greedy",
    choose_by="recall",
    k=3,
    refresh_gallery=3,
    evaluate_every=3,
    report_share=0.25,
    gallery_splits=("reward",),
    optimizer=OptimizerConfig(2e-2, warmup_share=0.0, final_share=1.0),
)


@pytest.fixture
def reinforce(badge_listings, tokenizer):
    """Runs the stage in a folder with fresh models; returns what learns as NumPy arrays."""
    asked = sorted({x.product_id for x in badge_listings})[:8]
    listings = [
        dataclasses.replace(x, split="reward") for x in badge_listings if x.product_id in asked
    ]
    builder = RowBuilder.of(listings, tokenizer, ImageConfig(), TextBudget(max_attribute_tokens=24))
    texts = {x.listing_id: "shape: circle; colour: red" for x in listings}
    size = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}

    def run(folder, kind):
        settings = dataclasses.replace(RAR, gallery_lists=kind)
        config = RunConfig(mesh=MeshConfig(data=1), save_every=4, packed=False, rar=settings)
        mesh = make_mesh(1, 1)
        embedder, generator = (
            Architecture.of(tiny_config(x, **size)) for x in ("qwen2_vl", "qwen2_5_vl")
        )
        encoder = Encoder.on(mesh, embedder, embedder.init(0), 32)
        rows = generator.config.text.vocab_size
        environment = RarEnvironment(builder, encoder, texts, settings, 0, vocab_size=rows)
        environment.annotation_grammar = environment.grammar
        trainee = Partition.of(generator, generator.init(1), config.generator, mesh)
        found = train_rar(config, folder, trainee, environment)
        return {name: np.asarray(x) for name, x in found.items()}

    return run, listings


class Killed(BaseException):
    """Stands in for a signal."""


WRITTEN = {
    # Step 0 has the lists that the stage started with; the evaluations ask for the others.
    "greedy": ["step-000003", "step-000005"],
    "sampled": ["sampled-000000", "sampled-000003", "step-000003", "step-000005"],
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_stage_killed_within_a_segment_ends_as_one_that_was_not(
    reinforce, tmp_path, monkeypatch, kind
):
    run, listings = reinforce
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(whole, kind)
    galleries = sorted((whole / "galleries").iterdir())
    assert [x.name.rpartition("-")[0] for x in galleries] == WRITTEN[kind]
    for path in galleries:
        read = read_samples if path.name.startswith("sampled") else read_attributes
        assert read(path).keys() == {x.listing_id for x in listings}
    lines = read_metrics(whole / "metrics.jsonl")
    assert [x["step"] for x in lines if "held_out/recall" in x] == [0, 3, 5]
    for line in (x for x in lines if "live_groups" in x):
        assert 0 <= line["live_groups"] <= RAR.candidates
        assert line["group_room"] >= 0
        assert {"list_gain", "well_formed_reward", "pass_at_group", "greedy_reward"} <= line.keys()
    reported = json.loads((whole / "report.json").read_text())
    assert reported["queries"] == 8
    assert reported["families"] == 2

    plain, seen = loop.place_batch, []

    def dying(batch, mesh):
        seen.append(batch)
        if len(seen) == 5:  # Step 4: its checkpoint lies in the segment from step 3 on.
            raise Killed
        return plain(batch, mesh)

    monkeypatch.setattr(loop, "place_batch", dying)
    with pytest.raises(Killed):
        run(killed, kind)
    monkeypatch.undo()
    met = "step" if kind == "greedy" else "sampled"
    (gallery,) = (killed / "galleries").glob(f"{met}-000003-*")
    hidden = gallery.rename(killed / gallery.name)
    with pytest.raises(RunError, match=r"holds 0 galleries of step 3.*run that stage again"):
        run(killed, kind)
    hidden.rename(gallery)
    found = run(killed, kind)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)

    def said(folder):
        names = ("step", "loss", "gradient_norm", "reward", "list_gain", "held_out/reward")
        return [[x.get(y) for y in names] for x in read_metrics(folder / "metrics.jsonl")]

    assert said(whole) == said(killed)
    assert (whole / "report.json").read_text() == (killed / "report.json").read_text()


def test_steps_meet_sampled_lists_and_what_is_judged_greedy_ones(reinforce, tmp_path):
    run, _ = reinforce
    run(tmp_path, "sampled")
    galleries = {x.name.rpartition("-")[0]: x for x in (tmp_path / "galleries").iterdir()}
    sampled = {i: x[0] for i, x in read_samples(galleries["sampled-000003"]).items()}
    assert sampled != read_attributes(galleries["step-000003"])
    earlier = {i: x[0] for i, x in read_samples(galleries["sampled-000000"]).items()}
    assert sampled != earlier
