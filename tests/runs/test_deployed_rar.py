"""RAR as it is deployed, as a stage of a run: galleries of the policy, and cycles around it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.inference.generator import Generator
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture(scope="module")
def settings(tiny_run):
    """Every option of a deployed RAR; checkpoints every two steps, galleries every three."""
    return dataclasses.replace(
        tiny_run.rar,
        steps=6,
        candidates=3,
        baseline="greedy",
        live_by="rank",
        reward="margin",
        judged="greedy",
        choose_by="recall",
        refresh_gallery=3,
        evaluate_every=3,
        report_share=0.3,
    )


@pytest.fixture(scope="module")
def pipeline(own_run, tiny_run):
    """Of a finished run."""
    found = Pipeline(own_run, tiny_run)
    yield found
    found.run.close()


@pytest.fixture(scope="module")
def deployed(pipeline, settings):
    """Folder of the stage that reinforces the run's distilled generator."""
    pipeline.reinforce("rar-deployed", settings)
    return pipeline.run.folder / "rar-deployed"


def test_the_policy_annotates_the_gallery_and_reports_on_a_third_part(deployed, pipeline, settings):
    galleries = sorted((deployed / "galleries").iterdir())
    # Step 0 has the distilled lists; the last evaluation asks for those of the last step.
    assert [x.name[:11] for x in galleries] == ["step-000003", "step-000006"]
    listings = pipeline.catalogue.subset(*settings.gallery_splits).listings
    for path in galleries:
        assert read_attributes(path).keys() == {x.listing_id for x in listings}
    lines = read_metrics(deployed / "metrics.jsonl")
    steps = [x for x in lines if "live_groups" in x]
    assert len(steps) == settings.steps
    for line in steps:
        assert 0 <= line["live_groups"] <= settings.candidates
        assert {"greedy_reward", "pass_at_group", "margin"} <= line.keys()
        if line["malformed_share"] < 1:
            assert {"list_gain", "well_formed_reward"} <= line.keys()
            assert line["group_room"] >= 0
    judged = [x for x in lines if "held_out/recall" in x]
    assert [x["step"] for x in judged] == [0, 3, 6]
    # Greedy lists are mended, so that none is malformed.
    assert all(x["held_out/malformed_share"] == 0 for x in judged)
    best = json.loads((deployed / "best" / "best.json").read_text())
    assert best["reward"] == pytest.approx(max(x["held_out/recall"] for x in judged))
    reported = json.loads((deployed / "report.json").read_text())
    assert reported["k"] == settings.k
    assert reported["queries"] >= reported["families"] > 0
    for name in ("reward", "recall", "reciprocal_rank"):
        found = reported[name]
        assert found["gain"] == pytest.approx(found["after"] - found["before"])


@pytest.mark.slow
def test_cycles_reinforce_in_between_and_have_controls(whole_run, tiny_run, tmp_path):
    cit = dataclasses.replace(tiny_run.cit, cycles=2, rar_between=True, steps=1)
    config = dataclasses.replace(tiny_run, cit=cit, controls=True)
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder, ignore=shutil.ignore_patterns(".lock"))
    for name in ("annotate-reinforced", "cit-1", "evaluate", "config.json", "report.html"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("evaluation.json", "gallery.json"):
        (folder / name).unlink()
    Pipeline(folder, config).execute()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    names = [x["name"] for x in evaluation["rows"]]
    assert names[-4:] == ["afmrl", "afmrl+cit-1", "afmrl+cit-old-lists", "afmrl+cit"]
    assert ("afmrl+cit-old-lists", "afmrl+cit") in [
        (x["from"], x["to"]) for x in evaluation["primary"] if x["step"] == "CIT"
    ]
    done = {x: json.loads((folder / x / "DONE.json").read_text()) for x in STAGES}
    made = {name: set(x["outputs"].values()) for name, x in done.items()}
    inputs = {name: x["inputs"] for name, x in done.items()}
    for stage, key, source in (
        ("rar-2", "generator", "rar"),
        ("rar-2", "embedder", "cit-1"),
        ("rar-2", "attributes", "annotate-reinforced"),
        ("cit-2", "embedder", "cit-1"),
        ("cit-2", "again", "annotate-reinforced-2"),
        ("cit-control-2", "embedder", "cit-control-1"),
    ):
        assert inputs[stage][key] in made[source], (stage, key)
    assert inputs["cit-control-2"]["again"] is None
    badge = np.full((40, 40, 3), 200, np.uint8)
    assert len(Generator.load(folder).write([{"text": "red badge", "image": badge}])) == 1
    assert "afmrl+cit-old-lists" in (folder / "report.html").read_text()


STAGES = (
    "rar",
    "annotate-reinforced",
    "cit-1",
    "cit-control-1",
    "rar-2",
    "annotate-reinforced-2",
    "cit-2",
    "cit-control-2",
)
