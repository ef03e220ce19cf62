"""How much sooner a restarted run finishes its first step than one that compiles everything.

    python -m experiments.reliability.restart  # writes experiments/results/restart.json

The fast demo is run once through all stages. Then each stage is started again on top of those
before it, alternately with an empty cache of compiled programs and with the cache that the cold
start left. Two spans are measured, from the start of the process and from the start of the stage's
work, both to the end of its first step. Ratios are of consecutive pairs.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from afmrl_jax.performance.record import ratios, spread, write_record
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import CACHE, reported
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL, LocalJob
from experiments.reliability.run_copies import copy_up_to, finished

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Restart:
    """Which stages, and how often."""

    stages: tuple[str, ...] = ("distill", "agcl", "rar")
    repeats: int = 5
    out: Path = Path("runs/restart")
    """Folder of the runs; finished ones are not repeated."""
    result: Path = RESULTS / "restart.json"


def fast_run(run: Path) -> LocalJob:
    """A fast run on one device; its stages are so short that every step is logged."""
    command = [*AFMRL, "train", "--fast", "--catalogue", "furniture", "--out", str(run)]
    return LocalJob(command, run.with_name(f"{run.name}-logs"))


def first_step(whole: Path, run: Path, stage: str) -> dict[str, float]:
    """Seconds to the end of a stage's first step, from the process's start and the stage's."""
    copy_up_to(whole, run, stage)
    metrics = run / stage / "metrics.jsonl"
    began = time.time()
    job = fast_run(run)

    def stepped() -> JsonObject | None:
        lines = metrics.read_text().split("\n")[:-1] if metrics.is_file() else []
        return next((x for x in map(json.loads, lines) if "first_step_seconds" in x), None)

    job.until(stepped, f"the first step of {stage}")
    seen = time.time() - began
    job.send(0, signal.SIGKILL)
    job.wait()
    line = stepped()
    assert line is not None
    begun = (run / stage / "inputs.json").stat().st_mtime
    return {
        "process": seen,
        "stage": began + seen - begun,
        "step": line["first_step_seconds"],
        "compiling": line["compile_seconds"],
    }


def main(settings: Restart) -> None:
    """Measure each stage cold and warm in turn."""
    whole, run = settings.out / "whole", settings.out / "again"
    job = fast_run(whole)
    last = settings.stages[-1]
    job.until(lambda: finished(whole, last), f"the end of {last}")
    job.end()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with Progress("restart", settings.repeats * len(settings.stages)) as progress:
        for stage in settings.stages:
            both = found[stage] = {"cold": [], "warm": []}
            for _ in range(settings.repeats):
                shutil.rmtree(settings.out / CACHE, ignore_errors=True)
                both["cold"].append(first_step(whole, run, stage))
                both["warm"].append(first_step(whole, run, stage))
                progress.update(sum(len(x["warm"]) for x in found.values()))
    figures, details = {}, []
    for stage, both in found.items():
        for span in ("process", "stage", "step"):
            cold, warm = ([x[span] for x in both[kind]] for kind in ("cold", "warm"))
            ratio = ratios(cold, warm)
            figures[f"{stage}_{span}_speedup"] = ratio["median"]
            details.append(
                {
                    "stage": stage,
                    "from": span,
                    "cold_seconds": spread(cold),
                    "warm_seconds": spread(warm),
                    "speedup": ratio,
                }
            )
    write_record(settings.result, "restart", figures, details)
    print(figures)
    print(settings.result)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Restart, description=__doc__))
