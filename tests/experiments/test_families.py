"""What one pair of families costs against another, from made-up logs."""

import json

import pytest

from afmrl_jax.errors import RunError
from experiments.studies.families import STAGES, Settings, options, summarise


def write(folder, seconds, peak):
    for stage in STAGES:
        lines = [{"step": n, "seconds_per_step": 9.0} for n in range(1, 4)]
        lines += [{"step": n, "seconds_per_step": x} for n, x in enumerate(seconds, 4)]
        lines.append({"step": 9, "seconds_per_step": 50.0, "compile_seconds": 49.0})
        (folder / stage).mkdir(parents=True)
        text = "".join(json.dumps(x) + "\n" for x in lines)
        (folder / stage / "metrics.jsonl").write_text(text)
    folder.with_suffix(".json").write_text(json.dumps({"peak_gb": peak}))


def test_ratios_are_of_runs_that_took_turns(tmp_path):
    for n, (slow, fast) in enumerate([(2.0, 1.0), (6.0, 4.0)]):
        write(tmp_path / f"qwen2-{n}", [fast, fast, fast], 2.0)
        write(tmp_path / f"qwen3-{n}", [slow, slow, slow], 2.5)
    found = summarise(Settings(out=tmp_path, repeats=2))
    assert found["figures"]["qwen3_peak_memory_ratio"]["median"] == 1.25
    assert found["figures"]["qwen3_agcl_step_ratio"]["median"] == 1.75
    assert found["seconds_per_step"]["qwen2"]["rar"]["max"] == 4.0


def test_a_stage_that_only_compiles_is_refused(tmp_path):
    for name in ("qwen2", "qwen3"):
        write(tmp_path / f"{name}-0", [], 2.0)
    with pytest.raises(RunError, match="take more --steps"):
        summarise(Settings(out=tmp_path, repeats=1))


def test_every_stage_has_steps_beyond_those_that_compile():
    asked = options(Settings(), "qwen3_vl", "qwen3_vl")
    assert asked[asked.index("--rar.steps") + 1] == "12"
