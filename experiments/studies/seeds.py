"""Repeat the demo over seeds, and report which of the paper's five steps hold.

What is claimed are the primary tests of `afmrl_jax.evaluation.primary`, over seeds and families and
corrected together; `steps` has the spread between seeds, as description.

    python -m experiments.studies.seeds --out runs/seeds

It writes experiments/results/seeds_marketplace.json, or that of another catalogue, or `--result`.
Finished seeds are not repeated, so the command may be interrupted and started again.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from afmrl_jax.evaluation.compare import check_comparable, find_values
from afmrl_jax.evaluation.primary import primary_over_seeds
from afmrl_jax.evaluation.statistics import spread, verdict
from afmrl_jax.evaluation.tasks import TASKS
from afmrl_jax.runtime.distributed import first_task
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject
from experiments.reliability.local_job import AFMRL

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Seeds:
    """Which seeds, and where their runs go."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    catalogue: str = "marketplace"
    out: Path = Path("runs/seeds")
    """Folder of the run directories."""
    result: Path | None = None
    """What is written; None for seeds_CATALOGUE.json among the results."""
    controls: bool = True
    """Also the controls of lists and of CIT."""
    config: Path | None = None
    """A file of settings that every run takes."""
    fast: bool = False
    """Few steps in every stage: shows that the script works, not how well the method does."""


def summarise(runs: list[Path]) -> JsonObject:
    """Rows, steps and RAR over finished runs."""
    evaluations = [read_json(run / "evaluation.json", nan=True) for run in runs]
    names = [row["name"] for row in evaluations[0]["rows"]]
    rows: JsonObject = {}
    for place, name in enumerate(names):
        found = [e["rows"][place] for e in evaluations]
        rows[name] = {
            f"{task.name}.{metric}": spread([row[task.name][metric] for row in found])
            for task in TASKS
            for metric in found[0].get(task.name) or {}
        }
    steps = {}
    for place, pair in enumerate(evaluations[0]["comparisons"]):
        metrics: JsonObject = {}
        for metric in ("fine.R@1", "fine.MRR", "fine.R@5", "fine.R@10", "coarse.mAP@10"):
            each = [e["comparisons"][place]["metrics"][metric] for e in evaluations]
            metrics[metric] = spread([x["difference"] for x in each])
            metrics[metric]["within_seed_intervals"] = [[x["low"], x["high"]] for x in each]
        metrics["verdict"] = verdict(metrics["fine.R@1"])
        steps[f"{pair['from']} -> {pair['to']}"] = metrics
    return {
        "rows": rows,
        "steps": steps,
        "primary": primary(runs),
        "rar": [reinforcement(run) for run in runs],
        "baselines": evaluations[0]["baselines"],
        "seconds": [round(sum(e["seconds"].values())) for e in evaluations],
        "peak_memory_gb": [e["peak_memory_gb"] for e in evaluations],
    }


def primary(runs: list[Path]) -> list[JsonObject]:
    """The primary tests over seeds and families; empty for one seed, which says nothing of others.

    Raises:
        RunError: the runs were not evaluated on the same listings.
    """
    if len(runs) < 2:
        return []
    sides = [find_values(run) for run in runs]
    for side in sides[1:]:
        check_comparable(sides[0], side)
    families = np.array(sides[0].values.families)
    return primary_over_seeds([x.values.systems for x in sides], families)


def reinforcement(run: Path) -> JsonObject:
    """The held-out queries before and after RAR, and the share of dead groups."""
    lines = read_metrics(run / "rar" / "metrics.jsonl")
    judged = [x for x in lines if "held_out/reward" in x]
    names = ("reward", "recall", "malformed_share", "attribute_count", "attribute_tokens")
    dead = [x["dead_group_share"] for x in lines if "dead_group_share" in x]
    return {
        "k": read_json(run / "rar" / "held_out_start" / "start.json", nan=True)["k"],
        "gain": judged[-1]["held_out/gain"],
        "gain_error": judged[-1]["held_out/gain_error"],
        "dead_group_share": float(np.mean(dead)),
        **{name: [judged[0][f"held_out/{name}"], judged[-1][f"held_out/{name}"]] for name in names},
    }


def main(settings: Seeds) -> None:
    """Run the seeds one after another and write the summary."""
    runs = []
    for seed in settings.seeds:
        run = settings.out / f"seed-{seed}"
        command = [*AFMRL, "train", "--out", str(run), "--seed", str(seed)]
        command += ["--catalogue", settings.catalogue]
        command += ["--controls"] * settings.controls + ["--fast"] * settings.fast
        command += ["--config", str(settings.config)] if settings.config else []
        subprocess.run(command, check=True)
        runs.append(run)
    if not first_task():
        return
    result = {"seeds": list(settings.seeds), **summarise(runs)}
    written = settings.result or RESULTS / f"seeds_{settings.catalogue}.json"
    write_json(written, provenance() | result)
    for x in result["primary"]:
        print(
            f"{x['step']}, {x['from']} -> {x['to']}, {x['task']}.{x['metric']}: "
            f"{x['difference']:+.2f} [{x['low']:+.2f}, {x['high']:+.2f}], "
            f"p {x['p_holm']:.4f}: {x['verdict']}"
        )
    print(written)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Seeds, description=__doc__))
