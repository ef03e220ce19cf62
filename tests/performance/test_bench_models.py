"""`afmrl bench models` at tiny sizes: every part runs, and both sides agree."""

import json
from importlib import import_module

import pytest

from afmrl_jax.config import RunConfig
from afmrl_jax.performance.benchmarks.limits import Limits, least_seconds
from afmrl_jax.performance.benchmarks.padding import padding_by_stage
from afmrl_jax.performance.benchmarks.workload import Size


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
        assert part["least_seconds"] > 0


def test_the_least_time_is_that_of_products_and_of_reading():
    size = Size.tiny()
    rates = Limits(products=1e9, reading=1e6)
    tokens = size.side**2 + size.text_tokens
    kernels = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    decoder = 2 * (2 * kernels * tokens + 4 * 32 * tokens * (tokens + 1) / 2)
    forward, train = (least_seconds(x, size, rates) for x in ("forward", "train"))
    # Two passes through the decoder, three through its adapters, one through the tower.
    assert train > forward + 4 * decoder / 1e9
    assert least_seconds("forward", size, Limits(2e9, 1e6)) == pytest.approx(forward / 2)
    weights = 4 * (2 * kernels + 32 * 64)
    one, slow = (least_seconds("decode_b1", size, Limits(1e9, x)) for x in (1e6, 5e5))
    assert slow - one == pytest.approx(size.new_tokens * weights / 1e6)


def test_compilation():
    figures, details = import_module(
        "afmrl_jax.performance.benchmarks.compile_time"
    ).measure_compile(2, 1)
    assert figures.keys() == {
        "compile_scan_speedup",
        "warm_start_speedup",
        "compile_flags_speedup",
    }
    assert all(value > 0 for value in figures.values())
    assert {x["part"] for x in details} == {
        f"compile{x}" for x in ("", "_unrolled", "_loop", "_warm", "_default flags", "_flags")
    }


def test_padding_is_counted_for_every_stage_of_the_demo():
    figures, details = padding_by_stage(RunConfig.demo("furniture"), 2)
    shares = {x["stage"]: x["padding"] for x in details}
    assert figures == {"padding_demo_max": max(shares.values())}
    stages = ("distill", "backbone", "infonce", "agcl-distilled", "rar", "annotate", "evaluate")
    assert shares.keys() == {*stages}
    for stage in stages:
        assert 0 < shares[stage] < 0.12, stage
    # Each stage has batches of its own.
    assert len(set(shares.values())) == len(stages)
