"""`experiments/cluster/slurm.sh` on a SLURM of its own: preempted, requeued, ended as if not."""

import json
import sys
from pathlib import Path

import pytest

from afmrl_jax.testing import write_badge_catalogue
from tests.runtime.processes.jobs import SCRIPT, losses, weights

pytestmark = pytest.mark.slow

COUNTING = str(Path(__file__).with_name("counting.py"))
STEPS = 60


@pytest.fixture
def submit(slurm, tmp_path):
    """Submits a script for two tasks; its log is a new file in `tmp_path`."""

    def submitted(*script: str, **env: str) -> tuple[str, Path]:
        log = tmp_path / f"job-{len(list(tmp_path.iterdir()))}.log"
        return slurm.submit(log, *script, PYTHON=sys.executable, **env), log

    return submitted


def script(path: Path, text: str) -> str:
    """A script that is no run: what it does is `text`, after it has said that it starts."""
    path.write_text("import os, signal, sys, time\nprint('starts', flush=True)\n" + text)
    return str(path)


def test_preempted_job_goes_on_behind_its_last_step(slurm, submit, tmp_path):
    number, log = submit(COUNTING, str(tmp_path / "whole"), "20")
    job = slurm.ended(number, log)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), slurm.said(log)
    whole = (tmp_path / "whole" / "steps.txt").read_text()
    assert len(whole.splitlines()) == 20
    assert "process 1 of 2 starts at step 0" in log.read_text()

    number, log = submit(COUNTING, str(tmp_path / "cut"), "20", "0.3")
    slurm.until(log, "under way")
    slurm.ask("scancel", "--signal=TERM", number)
    job = slurm.ended(number, log)
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1"), slurm.said(log)
    done = len((tmp_path / "cut" / "steps.txt").read_text().splitlines())
    assert 3 < done < 20
    slurm.start_now(number)
    job = slurm.ended(number, log, restarts=1)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), slurm.said(log)
    assert f"process 1 of 2 starts at step {done}" in log.read_text()
    assert (tmp_path / "cut" / "steps.txt").read_text() == whole


def test_preempted_stage_ends_as_an_uninterrupted_one(slurm, submit, tmp_path):
    """Two tasks of one device; without the preemption they would save nothing before the end."""
    write_badge_catalogue(tmp_path / "badges", splits=True)
    told = {"catalogue": str(tmp_path / "badges"), "steps": STEPS, "to": "distill"}
    told["save_every"] = 10 * STEPS
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def distil(folder: Path) -> tuple[str, Path]:
        return submit(str(SCRIPT), json.dumps(told | {"folder": str(folder)}))

    number, log = distil(whole)
    job = slurm.ended(number, log)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), slurm.said(log)

    number, log = distil(cut)
    slurm.until(cut / "distill" / "metrics.jsonl", '"step"', log)
    slurm.ask("scancel", "--signal=TERM", number)
    job = slurm.ended(number, log)
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1"), slurm.said(log)
    assert not (cut / "distill" / "DONE.json").exists()
    slurm.start_now(number)
    job = slurm.ended(number, log, restarts=1)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), slurm.said(log)
    # The step at which it was preempted has a line of its own.
    assert losses(whole, "distill").items() <= losses(cut, "distill").items()
    assert weights(cut, "distill") == weights(whole, "distill")


def test_error_is_not_requeued(slurm, submit, tmp_path):
    # The other task is done, and its status does not hide the error.
    number, log = submit(script(tmp_path / "a.py", "sys.exit(int(os.environ['SLURM_PROCID']))"))
    job = slurm.ended(number, log)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "0")


def test_a_task_that_has_saved_waits_for_one_that_still_saves(slurm, submit, tmp_path):
    text = f"""
first = os.environ["SLURM_PROCID"] == "0"
def saves(*_):
    time.sleep(0 if first else 4)
    open({str(tmp_path)!r} + "/saved-" + os.environ["SLURM_PROCID"], "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, saves)
print("ready", os.environ["SLURM_PROCID"], flush=True)
time.sleep(120)
"""
    number, log = submit(script(tmp_path / "a.py", text), AFMRL_MAX_REQUEUES="0")
    for task in "01":
        slurm.until(log, f"ready {task}")
    slurm.ask("scancel", "--signal=TERM", number)
    job = slurm.ended(number, log)
    assert {x.name for x in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    # The number of requeues is bounded.
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "75:0", "0")
    assert "AFMRL_MAX_REQUEUES is 0" in log.read_text()


def test_cancelled_job_saves_and_stays_cancelled(slurm, submit, tmp_path):
    text = f"""
def saves(*_):
    time.sleep(1)
    open({str(tmp_path)!r} + "/saved-" + os.environ["SLURM_PROCID"], "a").write("x")
    sys.exit(75)
signal.signal(signal.SIGTERM, saves)
print("ready", os.environ["SLURM_PROCID"], flush=True)
time.sleep(120)
"""
    number, log = submit(script(tmp_path / "a.py", text))
    for task in "01":
        slurm.until(log, f"ready {task}")
    slurm.ask("scancel", number)
    job = slurm.ended(number, log)
    assert {x.read_text() for x in tmp_path.glob("saved-*")} == {"x"}, slurm.said(log)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert "in the queue again" not in log.read_text()


def test_sigterm_before_the_script_listens_is_a_preemption(slurm, submit, tmp_path):
    number, log = submit(script(tmp_path / "a.py", "time.sleep(120)"))
    slurm.until(log, "starts\nstarts")
    slurm.ask("scancel", "--signal=TERM", number)
    job = slurm.ended(number, log)
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1"), slurm.said(log)
    slurm.ask("scancel", number)
