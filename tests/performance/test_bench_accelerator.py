"""`afmrl bench accelerator` at tiny sizes: every part runs, and what is missing is said."""

import json
import math

import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.performance.benchmarks.accelerator import run as accelerator
from afmrl_jax.performance.benchmarks.accelerator.page import ROWS, page


def record(folder):
    return json.loads((folder / accelerator.RECORD).read_text())


def statuses(folder):
    return {x["part"]: x["status"] for x in record(folder)["details"]}


@pytest.mark.slow
def test_all_parts(tmp_path):
    figures = accelerator.run(accelerator.Settings(repeats=3), tmp_path / "out")
    found = record(tmp_path / "out")
    assert [x["part"] for x in found["details"]] == list(accelerator.ORDER)
    # On a busy machine a tiny prompt may seem to take as long as the prompt and all its tokens.
    failed = {x["part"]: x["reason"] for x in found["details"] if x["status"] != "measured"}
    assert failed.keys() <= {"decode"}, failed
    assert all("busy" in reason for reason in failed.values()), failed
    assert found["figures"] == figures
    shown = {x: share for x, (_, _, share) in ROWS.items() if not failed or x[:2] != "g_"}
    assert figures.keys() >= shown.keys() | {x for x in shown.values() if x}
    assert all(math.isfinite(value) for value in figures.values())
    # The reward's gallery is larger than the catalogue, and both samples of a group are counted.
    rar = next(x for x in found["details"] if x["part"] == "rar")
    assert rar["gallery"] == 500
    text = (tmp_path / "out" / accelerator.PAGE).read_text()
    assert all(ROWS[x][0] in text for x in shown)


def test_a_part_without_time_is_skipped_and_measured_by_the_next_call(tmp_path, monkeypatch):
    out = tmp_path / "out"
    settings = accelerator.Settings(parts=("environment", "bm25"), repeats=1)
    monkeypatch.setattr(
        accelerator.Bench, "left", property(lambda self: -1.0 if "environment" in self.found else 9)
    )
    accelerator.run(settings, out)
    assert statuses(out) == {"environment": "measured", "bm25": "skipped"}
    assert "bm25: skipped" in (out / accelerator.PAGE).read_text()
    monkeypatch.undo()
    first = record(out)["details"][0]
    assert "bm25_ms" in accelerator.run(settings, out)
    assert statuses(out) == {"environment": "measured", "bm25": "measured"}
    assert record(out)["details"][0] == first  # Not measured again.


def test_a_part_that_fails_leaves_the_others(tmp_path):
    settings = accelerator.Settings(parts=("reward", "bm25"), repeats=1)
    accelerator.run(settings, tmp_path / "out")
    failed = record(tmp_path / "out")["details"][0]
    assert failed["status"] == "failed"
    assert "--parts" in failed["reason"]  # It needs the peaks.
    assert statuses(tmp_path / "out")["bm25"] == "measured"


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        accelerator.run(accelerator.Settings(parts=("environment",)), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_table_gives_shares():
    detail = {"part": "x", "status": "measured", "figures": {"reward_ms": 4.0}}
    detail["figures"]["reward_share_of_roofline"] = 0.5
    assert "| Reward, ranks in the gallery | 4 ms | 50 % |" in page("card", "real", [detail])
