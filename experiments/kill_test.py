"""End stages at random moments, resume them, and compare their weights bit by bit.

    python experiments/kill_test.py --out runs/kill     # writes experiments/results/kill_test.json
    python experiments/kill_test.py --kills 100 --processes 1 2     # hours on two cores

An uninterrupted run of each number of processes comes first. Then a stage is done anew on top of
the stages before it, one of its processes gets SIGKILL or SIGTERM at a random moment of its work,
and the stage is started again until it is finished; the SHA-256 of its weights must be that of the
uninterrupted run. After each signal every checkpoint that is left is looked at: none may be
half-written under its final name. Of two processes, the time is recorded that the other one took
to end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orbax.checkpoint as ocp
import tyro

from afmrl_jax.errors import RunError
from afmrl_jax.files import read_json, write_json
from afmrl_jax.progress import say
from afmrl_jax.runtime import reported
from afmrl_jax.training.store import WEIGHTS

HERE = Path(__file__).parent
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class KillTest:
    """What to end, how, and how often."""

    stages: tuple[str, ...] = ("distill", "agcl", "rar", "cit-1")
    kills: int = 16
    """Signals in all: in turn of every stage, signal and number of processes."""
    signals: tuple[Literal["KILL", "TERM"], ...] = ("KILL", "TERM")
    processes: tuple[int, ...] = (1,)
    """Numbers of processes; each has two devices."""
    seed: int = 0
    out: Path = Path("runs/kill")
    result: Path = HERE / "results" / "kill_test.json"


@dataclass
class Job:
    """The processes of a run."""

    processes: list[subprocess.Popen]

    @classmethod
    def start(cls, run: Path, count: int) -> Job:
        """A run with checkpoints close together."""
        steps = {"distill": 40, "agcl": 16, "rar": 6, "cit": 16}
        settings = ["--save-every", "4"]
        for stage, number in steps.items():
            settings += [f"--{stage}.steps", str(number)]
        command = [sys.executable, str(HERE / "demo.py"), "--fast", "--out", str(run), *settings]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        processes = []
        for number in range(count):
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
            if count > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(number),
                }
            quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen(command, env=environment, **quiet))
        return cls(processes)

    def wait_for(self, path: Path) -> None:
        """Until a file is there."""
        until = time.monotonic() + LIMIT_SECONDS
        while not path.is_file():
            failed = any(x.poll() not in (None, 0) for x in self.processes)
            if failed or time.monotonic() > until:
                self.kill()
                raise RunError(f"the run ended or hung before it wrote {path}")
            time.sleep(0.05)

    def wait(self) -> float:
        """Seconds until all have ended."""
        began = time.monotonic()
        for process in self.processes:
            process.wait(timeout=LIMIT_SECONDS)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL to all, without a chance to tidy up."""
        for process in self.processes:
            process.kill()
            process.wait()


def copy_up_to(whole: Path, run: Path, stage: str) -> None:
    """A run in which everything before `stage` is finished and nothing else was begun."""
    shutil.rmtree(run, ignore_errors=True)
    begun = (whole / stage / "inputs.json").stat().st_mtime
    for folder in whole.iterdir():
        done = folder / "DONE.json"
        if done.is_file() and done.stat().st_mtime <= begun:
            shutil.copytree(folder, run / folder.name)
    shutil.copy(whole / "config.json", run / "config.json")


def checkpoints(folder: Path) -> list[int]:
    """Steps of a stage's finished checkpoints; every one must be whole."""
    found = sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    for step in found:
        with ocp.StandardCheckpointer() as reader:
            reader.restore((folder / "checkpoints" / str(step) / "state").absolute())
    return found


@dataclass(frozen=True)
class Case:
    """One interruption."""

    stage: str
    signal: str
    processes: int


def interrupt(whole: Path, run: Path, case: Case, moment: float, victim: int) -> dict[str, Any]:
    """Signal one process of a stage once, `moment` seconds after it began, and finish it."""
    copy_up_to(whole, run, case.stage)
    folder = run / case.stage
    job = Job.start(run, case.processes)
    job.wait_for(folder / "inputs.json")
    time.sleep(moment)
    early = (folder / "DONE.json").is_file()
    job.processes[victim].send_signal(getattr(signal, f"SIG{case.signal}"))
    seconds = job.wait()
    statuses = [x.returncode for x in job.processes]
    kept = checkpoints(folder)
    job = Job.start(run, case.processes)
    job.wait_for(folder / "DONE.json")
    job.kill()
    outputs = [read_json(x / case.stage / "DONE.json")["outputs"][WEIGHTS] for x in (whole, run)]
    return {
        **vars(case),
        "victim": victim,
        "after_seconds": round(moment, 2),
        "ended_within_seconds": round(seconds, 2),
        "statuses": statuses,
        "checkpoints": kept,
        "put_aside": len(list(folder.glob("damaged-*"))),
        "finished_before": early,
        "equal": outputs[0] == outputs[1],
    }


def main(settings: KillTest) -> None:
    """All cases in turn; exit status 1 where any weights differ."""
    rng = np.random.default_rng(settings.seed)
    wholes: dict[int, Path] = {}
    for count in settings.processes:
        wholes[count] = settings.out / f"whole-{count}"
        Job.start(wholes[count], count).wait()
    cases = [
        Case(stage, name, count)
        for count in settings.processes
        for name in settings.signals
        for stage in settings.stages
    ]
    found: list[dict[str, Any]] = []
    # A stage that resumes is faster than the first time: its programs are compiled already. So the
    # moments are drawn from the first half, and a stage that got away is tried again.
    share = dict.fromkeys(cases, 1.0)
    while (done := sum(not x["finished_before"] for x in found)) < settings.kills:
        case = cases[done % len(cases)]
        whole = wholes[case.processes]
        seconds = share[case] * read_json(whole / case.stage / "DONE.json")["seconds"]
        moment, victim = float(rng.uniform(0.05, 0.8)) * seconds, int(rng.integers(case.processes))
        result = interrupt(whole, settings.out / "interrupted", case, moment, victim)
        share[case] *= 0.6 if result["finished_before"] else 1.0
        say(str(result))
        found.append(result)
        equal = all(x["equal"] for x in found) and not any(x["put_aside"] for x in found)
        write_json(settings.result, {"equal": equal, "kills": found})
    print(f"{len(found)} signals, all equal: {equal}; {settings.result}")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillTest, description=__doc__))
