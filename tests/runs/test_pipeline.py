"""The chain of stages: lineage, resuming bit for bit, refusing what does not fit."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.evaluation.per_query import read_query_values
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.training import loop
from afmrl_jax.training.run_directory import Run

pytestmark = pytest.mark.usefixtures("tiny_models")
STAGES = ("backbone", "infonce", "distill", "agcl", "agcl-distilled", "rar", "cit-1")


@pytest.fixture(scope="module")
def finished(own_run):
    return own_run


def weights(folder, stage):
    return load_file(folder / stage / "model" / "model.safetensors")


def assert_same_weights(one, two, stage):
    left, right = weights(one, stage), weights(two, stage)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=f"{stage} {name}")


def test_run_directory_holds_what_the_design_says(finished):
    for stage in (*STAGES, "tokenizer", "annotate-distilled", "annotate-reinforced", "evaluate"):
        done = json.loads((finished / stage / "DONE.json").read_text())
        assert done["outputs"], stage
        assert done["inputs"], stage
    for stage in STAGES:
        assert (finished / stage / "checkpoints").is_dir()
        assert (finished / stage / "metrics.jsonl").is_file()
        assert list((finished / stage / "tensorboard").iterdir())
    assert (finished / "report.html").is_file()
    assert not list(finished.rglob("*.partial"))


def test_every_file_of_a_run_is_valid_json(finished):
    own = [x for x in finished.rglob("*.json*") if "checkpoints" not in x.parts]
    assert {"evaluation.json", "gallery.json", "DONE.json", "metrics.jsonl"} <= {
        x.name for x in own
    }
    for path in own:
        lines = path.suffix == ".jsonl"
        for text in path.read_text().splitlines() if lines else [path.read_text()]:
            parse_json(text, path)  # Refuses NaN and infinities.


def test_evaluation_says_what_is_claimed_and_what_lists_do(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    tested = {(x["step"], x["metric"]) for x in evaluation["primary"]}
    steps = ("attributes", "AGCL", "RAR", "CIT", "text to image")
    assert tested == set(itertools.product(steps, ("R@1", "MRR")))
    assert evaluation["listings"] > evaluation["rows"][0]["n_gallery"]
    assert 0 < evaluation["chance"]["fine"]["R@1"] < evaluation["chance"]["fine"]["MRR"] < 100
    changes = evaluation["lists"]["changes"]
    assert changes["system"] == "afmrl+cit"
    before, after = (
        evaluation["rows"][-1]["fine"]["R@1"] * changes["queries"] / 100,
        changes["gained"] - changes["lost"],
    )
    assert 0 <= before - after <= changes["queries"]
    cards = json.loads((finished / "gallery.json").read_text())
    shown = [x["changed"]["gained"] for x in cards if "changed" in x]
    assert shown.count(True) == min(4, changes["gained"])
    assert shown.count(False) == min(2, changes["lost"])


def test_evaluation_has_every_row_and_task(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    names = ["infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit"]
    assert [row["name"] for row in evaluation["rows"]] == names
    for row in evaluation["rows"]:
        for task, metric in (
            ("fine", "R@10"),
            ("coarse", "mAP@5"),
            ("text_to_image", "R@1"),
            ("image_to_multimodal", "R@5"),
            ("classification", "accuracy"),
            ("clustering", "Purity"),
        ):
            assert 0 <= row[task][metric] <= 100
            low, high = row["intervals"][task][metric]
            assert low <= high
            macro = row["macro"].get(task, {}).get(metric)
            assert macro is None if task == "clustering" else 0 <= macro <= 100
        assert 0 <= row["coarse"]["map_m5@10"] <= 100
        assert row["n_queries"] == row["n_gallery"] == 20
        assert row["truncation"]["R@1"][0] == row["fine"]["R@1"]
        assert sum(x["queries"] for x in row["per_category"].values()) == 20
    pairs = [(x["from"], x["to"]) for x in evaluation["comparisons"]]
    assert pairs[:4] == list(itertools.pairwise(names))
    assert evaluation["scann"]["recall"] > 90
    timed = evaluation["latency"]
    assert timed["machine"]["cores"] >= 1
    for part in ("encode_one", "encode_batch", "search_exact_one", "search_exact_batch"):
        assert 0 < timed[part]["p50_ms"] <= timed[part]["p95_ms"], part
    kept = read_query_values(finished / evaluation["per_query"])
    assert list(kept.systems) == ["chance", *names]
    hits = kept.systems["afmrl"]["fine.R@1"]
    assert 100 * np.nanmean(hits) == pytest.approx(evaluation["rows"][3]["fine"]["R@1"], abs=0.01)


def test_rar_logs_what_the_report_draws(finished):
    lines = [json.loads(x) for x in (finished / "rar" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 1, 2, 3]
    for name in ("reward", "kl", "dead_group_share", "attribute_count", "malformed_share"):
        assert all(name in x for x in lines[1:]), name
    assert {"held_out/gain", "held_out/gain_error"} <= lines[-1].keys()


def test_stages_log_how_many_shapes_they_compiled(finished):
    for stage in STAGES:
        lines = (finished / stage / "metrics.jsonl").read_text().splitlines()
        assert 1 <= json.loads(lines[-1])["compiled_shapes"] <= 4, stage


def test_no_listing_is_annotated_by_a_generator_distilled_on_its_family(finished, tiny_run):
    from afmrl_jax.data.catalogue.load import load_catalogue

    catalogue = load_catalogue(tiny_run.catalogue)
    taught = {x.group for x in catalogue.subset("distill").listings}
    group = {x.listing_id: x.group for x in catalogue.listings}
    for stage in ("annotate-distilled", "annotate-reinforced"):
        text = (finished / stage / "attributes.jsonl").read_text()
        written = [json.loads(x)["listing_id"] for x in text.splitlines()]
        assert written
        assert not {group[x] for x in written} & taught


def test_oracle_text_is_never_an_input_of_the_embedder(finished):
    for stage in ("agcl", "agcl-distilled", "cit-1"):
        inputs = json.loads((finished / stage / "DONE.json").read_text())["inputs"]
        assert "oracle" not in inputs


def test_a_finished_run_is_left_alone(finished, tiny_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    Pipeline(finished, tiny_run).execute()
    assert "already finished, nothing to do" in capsys.readouterr().err
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed <= {".lock"}


class Killed(BaseException):
    """Stands in for a signal: nothing may catch and survive it."""


@pytest.mark.parametrize("stage", ["distill", "agcl", "rar", "cit-1"])
def test_a_killed_stage_ends_with_the_same_weights(
    stage, finished, tiny_run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(folder / stage)
    # The process dies at this batch, between two checkpoints.
    fatal = {"distill": 4, "agcl": 4, "rar": 3, "cit-1": 2}[stage]
    plain, seen = loop.place_batch, []

    def dying(batch, mesh):
        seen.append(batch)
        if len(seen) == fatal:
            raise Killed
        return plain(batch, mesh)

    pipeline = Pipeline(folder, tiny_run)
    monkeypatch.setattr(loop, "place_batch", dying)
    with pytest.raises(Killed):
        pipeline.stages()[stage]()
    monkeypatch.undo()
    pipeline.run.close()
    assert not (folder / stage / "DONE.json").exists()
    assert not (folder / stage / "model").exists()
    again = Pipeline(folder, tiny_run)
    again.stages()[stage]()
    again.run.close()
    assert_same_weights(finished, folder, stage)
    lines = (folder / stage / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines]
    assert steps == sorted(set(steps))


def test_another_config_is_refused(finished, tiny_run):
    other = dataclasses.replace(tiny_run, seed=5)
    with pytest.raises(RunError, match=r"another config \(seed: 0 -> 5\).*another --out"):
        Pipeline(finished, other)


def test_a_reward_that_is_none_is_refused_before_any_stage(tmp_path, tiny_run):
    rar = dataclasses.replace(tiny_run.rar, reward="accuracy")
    with pytest.raises(ConfigError, match="reciprocal_rank"):
        Pipeline(tmp_path / "run", dataclasses.replace(tiny_run, rar=rar))
    assert not (tmp_path / "run").exists()


def test_a_run_in_use_is_refused(tmp_path, tiny_run):
    run = Run(tmp_path / "run", tiny_run)
    with pytest.raises(RunError, match="in use by another process"):
        Run(tmp_path / "run", tiny_run)
    run.close()
    Run(tmp_path / "run", tiny_run).close()


def test_a_stage_with_other_inputs_is_refused(tmp_path, tiny_run):
    run = Run(tmp_path / "run", tiny_run)

    def work(folder):
        (folder / "out.txt").write_text("done")

    run.stage("a", {"x": 1}, ["out.txt"], work)
    with pytest.raises(RunError, match=r"other inputs \(x: 1 -> 2\)"):
        run.stage("a", {"x": 2}, ["out.txt"], work)
    run.close()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, tiny_run, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    pipeline = Pipeline(tmp_path / "run", tiny_run)
    pipeline._tokenizer_stage()
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(RunError, match=r"no space left.*checkpoints"):
        pipeline._distill()
    assert not (tmp_path / "run" / "distill" / "DONE.json").exists()
    pipeline.run.close()


def test_a_run_to_a_stage_begins_as_the_whole_run(finished, tiny_run, tmp_path):
    pipeline = Pipeline(tmp_path / "run", tiny_run, ("train",))
    pipeline.run_to("infonce")
    pipeline.run.close()
    order = list(pipeline.stages())
    for number, stage in enumerate(order):
        made = (tmp_path / "run" / stage / "DONE.json").is_file()
        assert made == (number <= order.index("infonce")), stage
    assert_same_weights(finished, tmp_path / "run", "infonce")
    text = (tmp_path / "run" / "annotate-distilled" / "attributes.jsonl").read_text()
    assert len(text.splitlines()) == len(pipeline.catalogue.indices("train"))
