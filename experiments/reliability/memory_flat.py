"""Whether memory stays flat: its slope over thousands of steps of each stage, and of searches.

    python -m experiments.reliability.memory_flat                     # three quarters of an hour
    python -m experiments.reliability.memory_flat --steps 100 --searches 1000

A run of tiny models goes through its stages with 6,000 steps each, and its embedder then searches
an index 20,000 times, each time for another text. The slope of the resident memory is the median of
those between any two readings of the second half (Theil and Sen), where everything is compiled and
every cache is full: an allocator's jumps do not move it. Exit status 1 if it is above 2 KB a step.
Writes experiments/results/reliability/memory_flat.json.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import theilslopes

from afmrl_jax.config import RunConfig
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.index import Index
from afmrl_jax.performance.record import write_record
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.setup import reported
from afmrl_jax.testing import write_badge_catalogue
from afmrl_jax.types import JsonObject
from experiments.reliability.fuzz.tiny_run import tiny_config_of_run, with_tiny_models

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
STAGES = ("distill", "backbone", "infonce", "agcl", "agcl-distilled", "rar", "cit-1")
MOST_KB = 2.0
"""KB a step that the noise of an allocator may look like."""
FEWEST, MOST_READINGS = 20, 1000
"""Readings from which a slope is meant, and of which it is taken."""


@dataclass(frozen=True)
class MemoryFlat:
    """For how long memory is read."""

    steps: int = 6000
    """Of each stage. In 2,000 what an allocator takes at a checkpoint looks like 3 KB a step."""
    searches: int = 20_000
    out: Path = Path("runs/memory-flat")
    """Folder of the run; finished stages are not repeated."""
    result: Path = RESULTS / "memory_flat.json"


def long_config(catalogue: Path, steps: int) -> RunConfig:
    """The tiny run with so many steps of every stage."""
    config = tiny_config_of_run(catalogue)
    return replace(
        config,
        save_every=max(1, steps // 4),
        distill=replace(config.distill, steps=steps),
        backbone=replace(config.backbone, steps=steps),
        agcl=replace(config.agcl, steps=steps),
        rar=replace(config.rar, steps=steps, evaluate_every=max(1, steps // 4)),
        cit=replace(config.cit, steps=steps),
        guard=replace(config.guard, explosion=None),
    )


def kilobytes() -> float:
    """Resident memory of this process now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def slope(readings: Sequence[tuple[float, float]]) -> float:
    """KB a step of (step, KB): the median slope between any two readings of the second half."""
    half = np.array(readings[len(readings) // 2 :])
    # All pairs of more would take gigabytes.
    chosen = half[:: -(-len(half) // MOST_READINGS)]
    return float(theilslopes(chosen[:, 1], chosen[:, 0]).slope)


def of_stage(folder: Path) -> list[tuple[float, float]]:
    """(step, KB) as the stage's log has them."""
    lines = read_metrics(folder / "metrics.jsonl")
    name = "host_memory_gb"
    return [(x["step"], x[name] * 2**20) for x in lines if name in x]


def of_searches(run: FinishedRun, count: int) -> list[tuple[float, float]]:
    """(search, KB) while an index is searched for one text after another."""
    embedder = Embedder.of(run, run.system("infonce"))
    vectors = embedder.encode([f"badge {n}" for n in range(500)])
    index = Index.build(vectors, [str(n) for n in range(500)])
    found = []
    with Progress("searches", count) as progress:
        for number in range(count):
            index.search(embedder.encode([f"red circle badge {number}"]), 10)
            if number % max(1, count // 200) == 0:
                found.append((float(number), kilobytes()))
                progress.update(number)
    return found


def measured(name: str, readings: Sequence[tuple[float, float]]) -> JsonObject:
    """The slope of some readings, for the record."""
    if len(readings) < FEWEST:
        return {"of": name, "readings": len(readings), "slope_kb": None}
    return {
        "of": name,
        "readings": len(readings),
        "steps": readings[-1][0],
        "first_mb": round(readings[0][1] / 1024, 1),
        "middle_mb": round(readings[len(readings) // 2][1] / 1024, 1),
        "last_mb": round(readings[-1][1] / 1024, 1),
        "slope_kb": round(slope(readings), 3),
    }


def main(settings: MemoryFlat) -> None:
    """Train, search, and print the slopes."""
    catalogue, folder = settings.out / "badges", settings.out / f"run-{settings.steps}"
    if not (catalogue / "listings.jsonl").is_file():
        shutil.rmtree(catalogue, ignore_errors=True)
        write_badge_catalogue(catalogue, splits=True)
    with with_tiny_models():
        pipeline = Pipeline(folder, long_config(catalogue, settings.steps))
        try:
            pipeline.run_to("cit-1")
        finally:
            pipeline.run.close()
    details = [measured(x, of_stage(folder / x)) for x in STAGES]
    details.append(measured("search", of_searches(FinishedRun(folder), settings.searches)))
    for x in details:
        print(x)
    figures = {f"{x['of']}_kb": x["slope_kb"] for x in details if x["slope_kb"] is not None}
    write_record(settings.result, "memory_flat", figures, details)
    print(settings.result)
    if any(x > MOST_KB for x in figures.values()):
        sys.exit(1)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(MemoryFlat, description=__doc__))
