"""Kill stages at random moments, resume them, and compare their weights bit by bit.

    python -m experiments.reliability.kill_test --out runs/kill
    python -m experiments.reliability.kill_test --kills 100 --processes 1 2     # hours on two cores

First comes an uninterrupted run for each number of processes. Then a stage is run again on top of
the stages before it, one of its processes gets SIGKILL or SIGTERM at a random moment of its work,
and the stage is restarted until it is finished; the SHA-256 of its weights must be that of the
uninterrupted run. After each signal every remaining checkpoint is checked: none may be half-written
under its final name. With two processes, the time that the other one took to end is recorded.
Writes experiments/results/kill_test.json.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from afmrl_jax.config import KeptCheckpoints
from afmrl_jax.errors import RunError
from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.preemption import STATUS
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.setup import reported
from afmrl_jax.training.checkpoint import DAMAGED
from afmrl_jax.training.model_store import WEIGHTS
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL, LocalJob
from experiments.reliability.run_copies import copy_up_to, finished

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class KillTest:
    """What to kill, how, and how often."""

    stages: tuple[str, ...] = ("distill", "agcl", "rar", "cit-1")
    kills: int = 16
    """Total number of signals, cycling over stages, signals and numbers of processes."""
    signals: tuple[Literal["KILL", "TERM"], ...] = ("KILL", "TERM")
    processes: tuple[int, ...] = (1,)
    """Numbers of processes; each has two devices."""
    seed: int = 0
    out: Path = Path("runs/kill")
    """Folder of the runs; finished ones are not repeated."""
    result: Path = RESULTS / "kill_test.json"


def start(run: Path, count: int) -> LocalJob:
    """Start a run with frequent checkpoints."""
    steps = {"distill": 20, "agcl": 8, "rar": 4, "cit": 8}
    settings = ["--save-every", "2"]
    for stage, number in steps.items():
        settings += [f"--{stage}.steps", str(number)]
    command = [*AFMRL, "train", "--fast", "--catalogue", "furniture", "--out", str(run), *settings]
    return LocalJob(command, run.with_name(f"{run.name}-logs"), count, devices=2)


def all_finished(run: Path, stages: Sequence[str]) -> bool:
    """Whether all of several stages are finished."""
    return all(finished(run, x) for x in stages)


def checkpoints(folder: Path) -> list[int]:
    """Steps of a stage's finished checkpoints; raises if one of those to keep cannot be read. Older
    ones may be half deleted.
    """
    found = sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    reader = ocp.PyTreeCheckpointHandler()
    for step in found[-KeptCheckpoints().newest :]:
        path = (folder / "checkpoints" / str(step) / "state").absolute()
        plain = jax.tree.map(_on_the_host, reader.metadata(path).tree)
        reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))
    return found


def _on_the_host(_: object) -> ocp.RestoreArgs:
    """The devices that an array was saved from do not exist here."""
    return ocp.RestoreArgs(restore_type=np.ndarray)


@dataclass(frozen=True)
class Case:
    """One way to end a stage."""

    stage: str
    signal: str
    processes: int


def interrupt(whole: Path, run: Path, case: Case, moment: float, victim: int) -> JsonObject:
    """Signal one process of a stage once, `moment` seconds after it began, then finish the stage.

    Raises:
        RunError: a process ended with an unexpected status.
    """
    copy_up_to(whole, run, case.stage)
    folder = run / case.stage
    job = start(run, case.processes)
    job.until((folder / "inputs.json").is_file, f"the start of {case.stage}")
    time.sleep(moment)
    early = finished(run, case.stage)
    began = time.monotonic()
    job.send(victim, getattr(signal, f"SIG{case.signal}"))
    statuses = job.wait()
    seconds = time.monotonic() - began
    wanted = STATUS if case.signal == "TERM" else -signal.SIGKILL
    if not early and (statuses[victim] != wanted or 0 in statuses):
        raise RunError(f"{case}: the processes ended with {statuses}\n{job.text()}")
    kept = checkpoints(folder)
    job = start(run, case.processes)
    job.until(lambda: finished(run, case.stage), f"the end of {case.stage}")
    job.end()
    outputs = [read_json(x / case.stage / "DONE.json")["outputs"][WEIGHTS] for x in (whole, run)]
    return {
        **asdict(case),
        "victim": victim,
        "after_seconds": round(moment, 2),
        "ended_within_seconds": round(seconds, 2),
        "statuses": statuses,
        "checkpoints": kept,
        "put_aside": len(list(folder.glob(f"{DAMAGED}-*"))),
        "finished_before": early,
        "equal": outputs[0] == outputs[1],
    }


def figures(found: list[JsonObject]) -> JsonObject:
    """Totals over the interruptions; those of stages that had already finished do not count."""
    met = [x for x in found if not x["finished_before"]]
    lost = [x["ended_within_seconds"] for x in met if x["signal"] == "KILL" and x["processes"] > 1]
    return {
        "signals": len(met),
        "equal": sum(x["equal"] for x in met),
        "damaged_checkpoints": sum(x["put_aside"] for x in found),
        "went_on_from_a_checkpoint": sum(bool(x["checkpoints"]) for x in met),
        "others_ended_within_seconds": max(lost, default=None),
    }


def main(settings: KillTest) -> None:
    """Run all cases in turn; exit status 1 if any weights differ."""
    wholes = {count: settings.out / f"whole-{count}" for count in settings.processes}
    for count, whole in wholes.items():
        ended = partial(all_finished, whole, settings.stages)
        if not ended():
            job = start(whole, count)
            job.until(ended, f"the end of {whole}")
            job.end()
    cases = [
        Case(stage, name, count)
        for count in settings.processes
        for name in settings.signals
        for stage in settings.stages
    ]
    done_before = settings.out / "kills.json"
    found: list[JsonObject] = read_json(done_before) if done_before.is_file() else []
    with Progress("signals", settings.kills, figures(found)["signals"]) as progress:
        while (done := figures(found)["signals"]) < settings.kills:
            case = cases[done % len(cases)]
            whole, rng = wholes[case.processes], np.random.default_rng([settings.seed, len(found)])
            # A later run of a stage is faster than the first: its programs are compiled already.
            # So if it finished before the signal, it is tried again with an earlier moment.
            alike = (case.stage, case.processes)
            earlier = [x for x in found if (x["stage"], x["processes"]) == alike]
            away = sum(x["finished_before"] for x in earlier)
            seconds = 0.6**away * read_json(whole / case.stage / "DONE.json")["seconds"]
            moment = float(rng.uniform(0.05, 0.8)) * seconds
            victim = int(rng.integers(case.processes))
            found.append(interrupt(whole, settings.out / "interrupted", case, moment, victim))
            log_info(str(found[-1]))
            write_json(done_before, found)
            progress.update(figures(found)["signals"])
    total = figures(found)
    write_record(settings.result, "kill_test", total, found)
    print(total)
    print(settings.result)
    if total["equal"] != total["signals"] or total["damaged_checkpoints"]:
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(KillTest, description=__doc__))
