"""`afmrl bench throughput` with tiny models: rows, what does not fit, resuming."""

import json
from importlib import import_module

import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.models.qwen_vl.presets import PRESETS
from afmrl_jax.testing import tiny_config


@pytest.fixture
def sweep(tmp_path, monkeypatch, badges):
    monkeypatch.setitem(PRESETS, "tiny_r", tiny_config())
    monkeypatch.setitem(PRESETS, "tiny_g", tiny_config("qwen2_5_vl"))
    module = import_module("afmrl_jax.performance.benchmarks.throughput")
    work = import_module("afmrl_jax.performance.sweep.work")
    monkeypatch.setattr(work, "WORDS", 300)
    work.catalogue.cache_clear()

    def make(**changes):
        settings = {
            "model": ("tiny_r", "tiny_g"),
            "task": ("agcl",),
            "batch": (4,),
            "visual": (4,),
            "text": 24,
            "remat": ("none",),
            "group_size": 2,
            "max_new_tokens": 3,
            "steps": 2,
            "catalogue": str(badges),
            "rows": tmp_path / "rows.jsonl",
            "out": tmp_path / "try.json",
        }
        return module.Sweep(**settings | changes)

    yield make
    work.catalogue.cache_clear()


def rows_of(tmp_path):
    return json.loads((tmp_path / "try.json").read_text())["rows"]


@pytest.mark.slow
def test_every_task_is_measured_and_kept(sweep, tmp_path, monkeypatch, capsys):
    asked = sweep(task=("agcl", "distill", "generate", "rar"))
    asked.execute()
    rows = rows_of(tmp_path)
    assert [x["cell"]["task"] for x in rows] == ["agcl", "distill", "generate", "rar"]
    for row in rows:
        assert row["status"] == "done", row
        assert row["seconds_per_step"]["samples"] == 2
        assert row["samples_per_second"]["median"] > 0
        assert row["images_per_second"]["median"] > 0
        assert row["mfu"] is None or 0 < row["mfu"] <= row["hfu"] <= 1
        assert 0 <= row["data_wait_share"] < 1
        assert 0 < row["text_padding"] < 1
        assert row["peak_bytes"] > 0
        assert row["compile_seconds"] > 0
        assert ("rollouts_per_second" in row) == (row["cell"]["task"] in ("generate", "rar"))
    assert (tmp_path / "try.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert table.strip() == (tmp_path / "try.md").read_text().strip()

    def never(*_):
        raise AssertionError("a finished row is measured again")

    monkeypatch.setattr(
        import_module("afmrl_jax.performance.benchmarks.throughput"), "measure", never
    )
    asked.execute()
    assert rows_of(tmp_path) == rows


def test_bytes_between_simulated_devices(sweep, tmp_path):
    sweep(model=("tiny_r",), mesh=("data=4,model=2",), devices=8).execute()
    (row,) = rows_of(tmp_path)
    axes = row["collective_bytes_by_axis"]
    assert {"data", "model"} <= {x for axis in axes for x in axis.split("+")}
    assert row["collective_bytes"] == sum(sum(x.values()) for x in axes.values()) > 0


def test_what_does_not_fit_is_said_and_not_run(sweep, tmp_path):
    sweep(model=("tiny_r",), batch=(64,), memory_gb=0.004).execute()
    (row,) = rows_of(tmp_path)
    assert row["status"] == "does not fit"
    assert "--batch-size 32" in row["why"]
    assert "0.00 GB" in row["why"]
    assert "does not fit" in (tmp_path / "try.md").read_text()
    sweep(model=("tiny_r",), mesh=("data=512,model=1",), batch=(512,)).execute()
    (row,) = rows_of(tmp_path)
    assert "needs 512 devices, found 8" in row["why"]


def test_the_largest_batch_fits_and_twice_it_does_not(sweep):
    cells = import_module("afmrl_jax.performance.sweep.cell")
    (cell,) = sweep(model=("tiny_r",), batch=(0,)).cells()
    room = 40_000_000
    size = cells.largest_batch(cell, lambda _: room)
    import dataclasses

    verdicts = [
        cells.plan_of(dataclasses.replace(cell, batch_size=x), room).verdict
        for x in (size, 2 * size)
    ]
    assert verdicts == ["fits", "does not fit"]
    assert cells.largest_batch(cell, lambda _: 1000) == 0


def test_rar_keeps_its_reference_too(sweep):
    cells = import_module("afmrl_jax.performance.sweep.cell")
    (cell,) = sweep(model=("tiny_g",), task=("rar",)).cells()
    lines = {x.what: x.bytes for x in cells.plan_of(cell, 1 << 40).lines}
    assert lines["reference policy (float32)"] == lines["weights that learn (float32)"]


def test_bad_settings_are_refused(sweep):
    with pytest.raises(ConfigError, match="does not divide"):
        list(sweep(mesh=("data=3,model=1",)).cells())
    with pytest.raises(ConfigError, match="other tasks"):
        list(sweep(model=("tiny_g",)).cells())
    with pytest.raises(ConfigError, match="text_tokens"):
        list(sweep(text=6).cells())


def test_a_batch_that_the_catalogue_cannot_fill_is_a_failed_row(sweep, tmp_path):
    sweep(model=("tiny_r",), batch=(1024,)).execute()
    (row,) = rows_of(tmp_path)
    assert row["status"] == "failed"
    assert "--catalogue" in row["why"]


def test_a_row_that_fails_in_any_way_is_a_row_that_says_so(sweep, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise NotImplementedError("Unsupported sequence length Q 307, KV 307.")

    module = import_module("afmrl_jax.performance.benchmarks.throughput")
    monkeypatch.setattr(module, "measure", refuses)
    sweep(model=("tiny_r",), batch=(4, 8)).execute()
    for row in rows_of(tmp_path):
        assert (row["status"], row["error"]) == ("failed", "NotImplementedError")
        assert "Q 307" in row["why"]
    assert "Q 307" in (tmp_path / "try.md").read_text()


def test_rows_share_the_highest_peak_that_was_measured():
    tables = import_module("afmrl_jax.performance.sweep.tables")
    common = {"status": "done", "seconds_per_step": {"median": 2.0}, "mfu": 0.1}
    measured = common | {"peak_source": tables.MEASURED, "useful_tflop_per_step": 1.0}
    rows = [
        measured | {"peak_tflops": 1.0},
        measured | {"peak_tflops": 4.0},
        common | {"peak_source": "h200", "peak_tflops": 989.0},
        {"status": "failed"},
    ]
    found = tables.with_one_peak(rows)
    assert [x.get("mfu") for x in found] == [0.125, 0.125, 0.1, None]
    # Rows of earlier sweeps have no count of what was recomputed.
    assert not any("hfu" in x for x in found)
    again = tables.with_one_peak(
        [measured | {"peak_tflops": 4.0, "recomputed_tflop_per_step": 0.5}]
    )
    assert again[0]["hfu"] == 0.1875
    assert found[0]["peak_tflops"] == 4.0


def test_another_setting_is_another_row(sweep):
    (one,), (two,) = (list(sweep(visual=(v,)).cells()) for v in (4, 8))
    assert one.key({}) != two.key({})
    assert one.key({}) != one.key({"machine": "another"})
    assert one.key({}) == one.key({})
