"""`afmrl bench` at tiny sizes: the figures are there, and are numbers."""

import json
import math
from importlib import import_module
from pathlib import Path

import pytest


def figures_of(path: Path, bench: str) -> dict[str, float]:
    record = json.loads(path.read_text())
    assert record.keys() == {"bench", "commit", "machine", "versions", "figures", "details"}
    assert record["bench"] == bench
    assert record["details"]
    for name, value in record["figures"].items():
        assert math.isfinite(value), name
        assert value > 0, name
    return record["figures"]


def test_agcl(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.agcl")
    settings = bench.Settings(
        size=16,
        memory_batches=(128, 256),
        time_batch=128,
        chunks=(32,),
        tile=32,
        vocab=300,
        longest=6,
        repeats=2,
        parts=("memory", "time"),
    )
    found = bench.run(settings, tmp_path / "agcl.json")
    assert found == figures_of(tmp_path / "agcl.json", "agcl")
    assert found.keys() == {
        "temp_ratio_literal_16k",
        "temp_ratio_literal_64k",
        "temp_ratio_rowchunk_64k",
        "time_ratio_dense_4k",
        "time_ratio_rowchunk_4k",
    }


def test_bm25(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.bm25")
    settings = bench.Settings(batch=32, vocab=300, longest=6, repeats=2, slow_repeats=2)
    found = bench.run(settings, tmp_path / "bm25.json")
    assert found == figures_of(tmp_path / "bm25.json", "bm25")
    assert found.keys() == {"speedup_rank_bm25", "speedup_bm25s", "speedup_scipy"}


def test_an_unwritable_place_is_said_before_anything_is_measured(tmp_path):
    from afmrl_jax.errors import ConfigError

    for name in ("agcl", "bm25", "grpo", "decode", "pictures", "search", "evaluate"):
        bench = import_module(f"afmrl_jax.performance.benchmarks.{name}")
        with pytest.raises(ConfigError, match="not a folder"):
            bench.run(bench.Settings(), tmp_path / "missing" / "x.json")


def test_gradcache():
    bench = import_module("afmrl_jax.performance.benchmarks.gradcache")
    settings = bench.GradcacheSettings.tiny()
    ratio, details = bench.time_ratio(settings)
    assert ratio > 0
    waste, more = bench.padding_waste(settings)
    assert 0 < waste < 1
    assert details
    assert more


def test_grpo(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.grpo")
    found = bench.run(bench.tiny(), tmp_path / "grpo.json")
    assert found == figures_of(tmp_path / "grpo.json", "grpo")
    assert found.keys() == {
        "shared_prefix_speedup",
        "packed_lists_speedup",
        "shared_prefix_flops_ratio",
        "reward_speedup_argsort",
        "reward_time_ratio_matmul",
    }
    # What is shared is shared at any size.
    assert found["shared_prefix_flops_ratio"] > 2


def test_decode(tmp_path):
    bench, size = (
        import_module("afmrl_jax.performance.benchmarks.decode"),
        import_module("afmrl_jax.performance.benchmarks.workload").Size.tiny(),
    )
    settings = bench.Settings(size=size, prompts=2, group_size=2, repeats=2)
    found = bench.run(settings, tmp_path / "decode.json")
    record = json.loads((tmp_path / "decode.json").read_text())
    assert record["figures"] == found
    assert found["decode_tokens_per_second"] > 0
    assert found["host_syncs_per_token"] == 0
    assert record["details"][0]["loops_in_the_program"] >= 1


def test_input(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.pictures")
    settings = bench.Settings(
        pictures=3, side=160, visual_tokens=(4, 16), repeats=2, workers=(0, 2), batches=3
    )
    found = bench.run(settings, tmp_path / "input.json")
    assert found == figures_of(tmp_path / "input.json", "input")
    assert found.keys() == {
        "images_per_core_speedup",
        "images_per_core_speedup_equal_decoding",
    }
    details = json.loads((tmp_path / "input.json").read_text())["details"]
    assert details[0]["scaled_difference"]["mean"] > 0
    assert details[-1]["images_per_second"].keys() == {"0", "2"}


def test_search(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.search")
    settings = bench.Settings(
        gallery=21_000, dim=16, clusters=500, queries=64, recall=0.8, changed=200, repeats=2
    )
    found = bench.run(settings, tmp_path / "search.json")
    assert found == figures_of(tmp_path / "search.json", "search")
    assert found.keys() == {"exact_time_ratio_matmul", "scann_qps_ratio", "scann_recall_at_50"}
    assert found["scann_recall_at_50"] > 0.75
    details = json.loads((tmp_path / "search.json").read_text())["details"]
    kinds = {(x["part"], x.get("kind")) for x in details}
    assert {("changed", "scann"), ("changed", "exact"), ("saved", "scann")} <= kinds


def test_evaluate(tmp_path):
    bench = import_module("afmrl_jax.performance.benchmarks.evaluate")
    settings = bench.Settings(
        queries=300, gallery=500, dim=16, categories=9, repeats=2, checked=100, noise=2.0
    )
    found = bench.run(settings, tmp_path / "evaluate.json")
    assert found == figures_of(tmp_path / "evaluate.json", "evaluate")
    assert found.keys() == {"rows_per_second"}
    (detail,) = json.loads((tmp_path / "evaluate.json").read_text())["details"]
    assert detail["disagreements"] == 0
    assert detail["bytes_beyond_inputs"] >= 0
    assert 0 < detail["means"]["fine.R@1"] < detail["means"]["fine.R@10"] < 1
