"""What Qwen3-VL in both roles costs against Qwen2-VL and Qwen2.5-VL, at the demo's size.

    python -m experiments.studies.families --out runs/families

writes experiments/results/families.json. Every run is a process of its own on the embedded
catalogue, from random weights, with few steps of every stage; the families take turns, so that a
slow minute meets both. Peak memory is the most that the process ever had in memory, compilation
included. Seconds of a step leave out the first steps of a stage, which compile. Finished runs are
not repeated, so the command may be interrupted and started again. Run nothing else meanwhile.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import tyro

from afmrl_jax.errors import RunError
from afmrl_jax.performance.record import ratios, spread
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL

RESULTS = Path(__file__).parents[1] / "results"
FAMILIES = {"qwen2": ("qwen2_vl", "qwen2_5_vl"), "qwen3": ("qwen3_vl", "qwen3_vl")}
"""Embedder and generator by the name of the pair; others are compared with the first."""
STAGES = ("distill", "infonce", "agcl", "rar")
COMPILING = 3
"""First steps of a stage that are left out."""


@dataclass(frozen=True)
class Settings:
    """How often, and where runs go."""

    out: Path = Path("runs/families")
    """Folder of the run directories."""
    result: Path = RESULTS / "families.json"
    repeats: int = 1
    """Runs of each pair of families."""
    steps: int = 24
    """Of each stage; RAR takes half as many."""


def options(settings: Settings, embedder: str, generator: str) -> list[str]:
    """Of `afmrl train`: the fast preset on the embedded catalogue, with a few more steps."""
    half = max(COMPILING + 1, settings.steps // 2)
    counts = {"distill": settings.steps, "backbone": 1, "agcl": settings.steps, "rar": half}
    found = ["--preset", "fast", "--catalogue", "furniture", "--cit.steps", "1"]
    found += ["--embedder.family", embedder, "--generator.family", generator]
    return found + [x for name, n in counts.items() for x in (f"--{name}.steps", str(n))]


def train(folder: Path, arguments: list[str]) -> None:
    """One run in a process of its own; its peak memory is kept beside it.

    Raises:
        RunError: it failed.
    """
    record = folder.with_suffix(".json")
    if record.is_file():
        return
    command = [*AFMRL, "train", *arguments, "--out", str(folder)]
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f"{' '.join(command)} ended with {process.returncode}; see its output above")
    write_json(record, {"peak_gb": round(usage.ru_maxrss / 2**20, 3)})


def step_seconds(folder: Path, stage: str) -> list[float]:
    """Of the steps of a stage that compiled nothing.

    Raises:
        RunError: there is none.
    """
    found = [
        float(x["seconds_per_step"])
        for x in read_metrics(folder / stage / "metrics.jsonl")
        if x.get("step", 0) > COMPILING and "seconds_per_step" in x and "compile_seconds" not in x
    ]
    if not found:
        raise RunError(f"{folder / stage} has no step that compiled nothing; take more --steps")
    return found


def summarise(settings: Settings) -> JsonObject:
    """Spread of memory and of each stage's steps, and ratios to the first pair."""
    folders = {
        name: [settings.out / f"{name}-{n}" for n in range(settings.repeats)] for name in FAMILIES
    }
    peaks = {
        name: [float(read_json(x.with_suffix(".json"))["peak_gb"]) for x in each]
        for name, each in folders.items()
    }
    medians = {
        name: {stage: [spread(step_seconds(x, stage))["median"] for x in each] for stage in STAGES}
        for name, each in folders.items()
    }
    first = next(iter(FAMILIES))
    out: JsonObject = {
        "families": {
            name: dict(zip(("embedder", "generator"), x, strict=True))
            for name, x in FAMILIES.items()
        },
        "peak_gb": {name: spread(x) for name, x in peaks.items()},
        "seconds_per_step": {
            name: {stage: spread(x) for stage, x in stages.items()}
            for name, stages in medians.items()
        },
        "figures": {},
    }
    for name in list(FAMILIES)[1:]:
        out["figures"][f"{name}_peak_memory_ratio"] = ratios(peaks[name], peaks[first])
        for stage in STAGES:
            of_stage = ratios(medians[name][stage], medians[first][stage])
            out["figures"][f"{name}_{stage}_step_ratio"] = of_stage
    return out


def main(settings: Settings) -> None:
    """Train what is not trained, and write the summary."""
    settings.out.mkdir(parents=True, exist_ok=True)
    for number in range(settings.repeats):
        for name, (embedder, generator) in FAMILIES.items():
            train(settings.out / f"{name}-{number}", options(settings, embedder, generator))
    write_json(settings.result, {**provenance(), "steps": settings.steps, **summarise(settings)})


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Settings, description=__doc__))
