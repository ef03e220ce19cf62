"""A stage that is masked by the embedder of `infonce`."""

import dataclasses
import json
from contextlib import closing

import pytest

from afmrl_jax.config import BackboneConfig
from afmrl_jax.errors import RunError
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("tiny_models")


def test_the_finished_infonce_masks_and_its_absence_is_an_error(tiny_run, tmp_path):
    agcl = dataclasses.replace(
        tiny_run.agcl, steps=2, gamma=0.0, delta=None, teacher_share=0.5, oracle_mask="product"
    )
    config = dataclasses.replace(tiny_run, backbone=BackboneConfig(steps=0), agcl=agcl)
    pipeline = Pipeline(tmp_path / "run", config)
    with closing(pipeline.run):
        pipeline._tokenizer_stage()
        with pytest.raises(RunError, match=r"agcl: .*the stage infonce, which is not finished"):
            pipeline.train_r("agcl", agcl, None, in_input=False)
        pipeline.train_r("infonce", agcl.infonce(), None, in_input=False)
        pipeline.train_r("agcl", agcl, None, in_input=False)
    folder = tmp_path / "run"
    done = {x: json.loads((folder / x / "DONE.json").read_text()) for x in ("infonce", "agcl")}
    assert done["agcl"]["inputs"]["teacher"] in done["infonce"]["outputs"].values()
    assert "teacher" not in done["infonce"]["inputs"]
    last = read_metrics(folder / "agcl" / "metrics.jsonl")[-1]
    assert last["masked"] >= last["masked_by_teacher"] > 0
    assert last["masked_by_oracle"] == 0  # Badges have no second ids.
