"""A run's config stands for work that was done, and is checked when it is read."""

import dataclasses
import json

import pytest

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.training.run_directory import Run

CONFIG = RunConfig.fast()
OTHER = dataclasses.replace(CONFIG, seed=1)


def opened(folder, config):
    run = Run(folder, config)
    run.close()
    return run


def fail(folder):
    raise RunError("the weights are missing")


def test_a_start_without_a_stage_leaves_no_config(tmp_path):
    opened(tmp_path, CONFIG)
    assert {x.name for x in tmp_path.iterdir()} == {".lock"}


def test_a_start_that_fails_before_its_first_step_leaves_no_config(tmp_path):
    run = opened(tmp_path, CONFIG)
    run.stage("tokenizer", {"vocab_size": 300}, [], lambda folder: None)
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(CONFIG)
    with pytest.raises(RunError, match="weights are missing"):
        run.stage("distill", {"seed": 0}, [], fail)
    assert {x.name for x in tmp_path.iterdir() if any(x.glob("*"))} == {"tokenizer"}
    assert not (tmp_path / "config.json").exists()
    # Other settings may follow, and what is done stays done.
    run = opened(tmp_path, OTHER)
    run.stage("tokenizer", {"vocab_size": 300}, [], fail)
    run.stage("distill", {"seed": 1}, [], lambda folder: None)
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(OTHER)


@pytest.mark.parametrize("kept", ["distill/metrics.jsonl", "distill/checkpoints/3"])
def test_a_failure_after_a_step_keeps_the_config(tmp_path, kept):
    def work(folder):
        path = folder.parent / kept
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        fail(folder)

    with pytest.raises(RunError, match="weights are missing"):
        opened(tmp_path, CONFIG).stage("distill", {"seed": 0}, [], work)
    with pytest.raises(RunError, match=r"another config \(seed: 0 -> 1\)"):
        Run(tmp_path, OTHER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"agcl": 3}, "agcl: input should be an object"),
        ({"cit": {"cycles": 10**9}}, "cit: cycles must lie between 0 and 1,000"),
        ({"seed": "0"}, "seed: input should be a valid integer"),
        ({"surplus": 0}, "surplus: unknown name"),
    ],
)
def test_a_broken_config_of_a_run_is_named(tmp_path, change, reason):  # F11, W6
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG) | change))
    with pytest.raises(ConfigError, match=rf"config\.json: {reason}"):
        Run(tmp_path, CONFIG)
