"""`afmrl bench models` at tiny sizes: every part runs, and both sides agree."""

import json
from importlib import import_module

import pytest

from afmrl_jax.config import RunConfig
from afmrl_jax.performance.benchmarks.padding import padding_by_stage


@pytest.mark.parity
def test_against_torch(tmp_path):
    for name in ("torch", "peft"):
        pytest.importorskip(name)
    models, workload = (
        import_module("afmrl_jax.performance.benchmarks.models"),
        import_module("afmrl_jax.performance.benchmarks.workload"),
    )
    settings = models.Settings(
        parts=("forward", "train", "decode"), repeats=1, size=workload.Size.tiny()
    )
    figures = models.run(settings, tmp_path / "models.json")
    assert figures.keys() == set(models.FIGURES.values())
    record = json.loads((tmp_path / "models.json").read_text())
    assert record["figures"] == figures
    for part in record["details"]:
        # Of the products that both compute, something must be seen on either side.
        assert part["our_profile"]["products"] > 0, part
        assert part["torch_profile"]["products"] > 0, part
        assert part.get("same_tokens", 1.0) == 1.0
        assert part["speedup"]["median"] > 0


def test_compilation():
    figures, details = import_module(
        "afmrl_jax.performance.benchmarks.compile_time"
    ).measure_compile(2, 1)
    assert figures.keys() == {"compile_scan_speedup", "warm_start_speedup"}
    assert all(value > 0 for value in figures.values())
    assert {x["part"] for x in details} >= {"compile_unrolled", "compile_loop", "compile_warm"}


def test_padding_is_counted_for_every_stage_of_the_demo():
    figures, details = padding_by_stage(RunConfig.demo(), 2)
    shares = {x["stage"]: x["padding"] for x in details}
    assert figures == {"padding_demo_max": max(shares.values())}
    for stage in ("distill", "backbone", "infonce", "agcl-distilled"):
        assert 0 < shares[stage] < 0.12, stage
    assert {"rar", "annotate", "evaluate"} <= shares.keys()
