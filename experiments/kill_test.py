"""Kill stages at random moments, resume them, and compare their weights bit by bit.

    python experiments/kill_test.py --out runs/kill     # writes experiments/results/kill_test.json

An uninterrupted run comes first. Then each stage is done anew on top of the stages before it,
killed with SIGKILL at a random moment of its work, and started again until it is finished; the
SHA-256 of its weights must be the uninterrupted run's.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from afmrl_jax.errors import RunError
from afmrl_jax.files import read_json, write_json
from afmrl_jax.progress import say
from afmrl_jax.runtime import reported
from afmrl_jax.training.store import WEIGHTS

HERE = Path(__file__).parent
LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class KillTest:
    """What to kill, and how often."""

    stages: tuple[str, ...] = ("distill", "agcl", "rar", "cit-1")
    times: int = 3
    """Random moments a stage."""
    seed: int = 0
    out: Path = Path("runs/kill")
    result: Path = HERE / "results" / "kill_test.json"


def demo(run: Path) -> list[str]:
    """A run with checkpoints close together."""
    steps = {"distill": 40, "agcl": 16, "rar": 6, "cit": 16}
    settings = ["--save-every", "4"]
    for stage, count in steps.items():
        settings += [f"--{stage}.steps", str(count)]
    return [sys.executable, str(HERE / "demo.py"), "--fast", "--out", str(run), *settings]


def copy_up_to(whole: Path, run: Path, stage: str) -> None:
    """A run in which everything before `stage` is finished and nothing else was begun."""
    shutil.rmtree(run, ignore_errors=True)
    begun = (whole / stage / "inputs.json").stat().st_mtime
    for folder in whole.iterdir():
        done = folder / "DONE.json"
        if done.is_file() and done.stat().st_mtime <= begun:
            shutil.copytree(folder, run / folder.name)
    shutil.copy(whole / "config.json", run / "config.json")


def steps_done(folder: Path) -> int:
    """Steps of the newest checkpoint of a stage; 0 without one."""
    found = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return max(found, default=0)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until a file is there."""
    until = time.monotonic() + LIMIT_SECONDS
    while not path.is_file():
        if process.poll() not in (None, 0) or time.monotonic() > until:
            raise RunError(f"the run ended or hung before it wrote {path}; look at its output")
        time.sleep(0.05)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, without a chance to tidy up."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def interrupt(whole: Path, run: Path, stage: str, moment: float) -> dict[str, Any]:
    """Kill one stage once, `moment` seconds after it began, and finish it."""
    copy_up_to(whole, run, stage)
    output: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(demo(run), **output)
    wait_for(run / stage / "inputs.json", process)
    time.sleep(moment)
    kill(process)
    early = (run / stage / "DONE.json").is_file()
    steps = steps_done(run / stage)
    process = subprocess.Popen(demo(run), **output)
    wait_for(run / stage / "DONE.json", process)
    kill(process)
    outputs = [read_json(x / stage / "DONE.json")["outputs"][WEIGHTS] for x in (whole, run)]
    return {
        "stage": stage,
        "killed_after_seconds": round(moment, 2),
        "checkpointed_steps": steps,
        "finished_before": early,
        "equal": outputs[0] == outputs[1],
    }


def main(settings: KillTest) -> None:
    """All stages, all moments; exit status 1 where any weights differ."""
    whole, run = settings.out / "whole", settings.out / "killed"
    subprocess.run(demo(whole), check=True)
    rng = np.random.default_rng(settings.seed)
    found: list[dict[str, Any]] = []
    for stage in settings.stages:
        # A stage that resumes is faster than the first time: its programs are compiled already.
        # So the moments are drawn from the first half, and a stage that got away is tried again.
        seconds = float(read_json(whole / stage / "DONE.json")["seconds"])
        while sum(x["stage"] == stage and not x["finished_before"] for x in found) < settings.times:
            result = interrupt(whole, run, stage, float(rng.uniform(0.05, 0.8)) * seconds)
            seconds *= 0.6 if result["finished_before"] else 1.0
            say(str(result))
            found.append(result)
    equal = all(x["equal"] for x in found)
    write_json(settings.result, {"equal": equal, "kills": found})
    print(f"{len(found)} kills, all equal: {equal}; {settings.result}")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillTest, description=__doc__))
