"""How RAR behaves over seeds, over a long run, and when it is forced to collapse.

    python -m experiments.studies.rar_study                              # hours on two cores
    python -m experiments.studies.rar_study --fast --out runs/rar-smoke --seeds 0 \
        --result runs/rar-smoke/study.json --plot runs/rar-smoke/study.png

Rewrites experiments/results/rar_study.json and docs/images/rar_study.png after every stage. The
same command resumes an interrupted run.

For each seed the default RAR reinforces the distilled generator. For the first seed, two more runs
start from the same generator: one of --long-steps steps, over which reward, list length and host
memory should stay stable, and one without KL and at a high learning rate, which must raise alarms.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from afmrl_jax.config import RarConfig, RunConfig
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.runtime.progress import log_info, print_result
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import open_run, reported
from afmrl_jax.training.rar.monitor import raised
from afmrl_jax.types import JsonObject
from experiments.studies.rar_plot import draw_rar_study

RESULTS = Path(__file__).parents[1] / "results"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
# Of these, `backbone` is made where the configuration has one.
NEEDED = ("tokenizer", "distill", "annotate-distilled", "backbone", "agcl-distilled", "rar")
CURVES = ("held_out/reward", "held_out/attribute_count", "held_out/attribute_tokens")
KEPT = (
    *("step", "reward", "entropy", "kl", "attribute_count", "host_memory_gb", "live_groups"),
    *("well_formed_reward", "list_gain", "group_room", "pass_at_group"),
    *CURVES,
)


@dataclass(frozen=True)
class Study:
    """What is run and where it goes."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    catalogue: str = "furniture"
    long_steps: int = 500
    """Steps of the long run; the default RAR has 30."""
    collapse_steps: int = 60
    out: Path = Path("runs/seeds")
    """Folder of the run directories, the same as for seeds.py: finished stages are not repeated."""
    result: Path = RESULTS / "rar_study.json"
    plot: Path = IMAGES / "rar_study.png"
    fast: bool = False
    """Few steps everywhere: shows that the script works, and says nothing about RAR."""

    def base(self, seed: int) -> RunConfig:
        """The run of a seed."""
        config = (RunConfig.fast if self.fast else RunConfig.demo)(self.catalogue)
        return dataclasses.replace(config, catalogue=self.catalogue, seed=seed)

    def long(self, rar: RarConfig) -> RarConfig:
        """Many steps, few evaluations."""
        steps = 12 if self.fast else self.long_steps
        return dataclasses.replace(rar, steps=steps, evaluate_every=max(1, steps // 20))

    def collapse(self, rar: RarConfig) -> RarConfig:
        """No KL penalty and a high learning rate."""
        steps = 6 if self.fast else self.collapse_steps
        rate = dataclasses.replace(rar.optimizer, learning_rate=5e-3)
        return dataclasses.replace(
            rar, steps=steps, evaluate_every=max(1, steps // 6), kl_coefficient=0.0, optimizer=rate
        )


def summary(folder: Path) -> JsonObject:
    """The content of a stage's log: curves, the best evaluation, alarms, memory."""
    lines = read_metrics(folder / "metrics.jsonl")
    judged = [x for x in lines if "held_out/reward" in x]
    best = max(judged, key=lambda x: x["held_out/reward"])
    memory = [x["host_memory_gb"] for x in lines if "host_memory_gb" in x]
    found: JsonObject = {
        "steps": lines[-1]["step"],
        "start": judged[0]["held_out/reward"],
        "best": {"step": best["step"], "reward": best["held_out/reward"]},
        "gain": best["held_out/gain"],
        "gain_error": best["held_out/gain_error"],
        "last": {name: judged[-1][name] for name in CURVES},
        "alarms": [
            {"step": step, "name": x.name, "message": x.message} for step, x in raised(lines)
        ],
        "lines": [{k: x[k] for k in KEPT if k in x} for x in lines],
    }
    if memory:
        # Compilation ends within the first tenth; a leak would continue after it.
        rest = memory[len(memory) // 10 :]
        steps = np.arange(len(rest))
        slope = float(np.polyfit(steps, rest, 1)[0]) if len(rest) > 1 else 0.0
        found["memory"] = {
            "first_gb": rest[0],
            "last_gb": rest[-1],
            "gb_per_100_steps": 100 * slope,
        }
    return found


def main(study: Study) -> None:
    """Run stage by stage; after each one write the result and the plot."""
    result: JsonObject = {"fast": study.fast, "seeds": {}}

    def keep() -> None:
        write_json(study.result, provenance() | result)
        draw_rar_study(result, study.plot)

    for seed in study.seeds:
        folder = study.out / f"seed-{seed}"
        config = study.base(seed)
        pipeline = Pipeline(folder, config)
        with closing(pipeline.run):
            stages = pipeline.stages()
            for name in filter(stages.__contains__, NEEDED):
                stages[name]()
            result["seeds"][str(seed)] = summary(folder / "rar")
            keep()
            if seed != study.seeds[0]:
                continue
            for name, settings in (("long", study.long), ("collapse", study.collapse)):
                log_info(f"{folder.name}: {name}")
                pipeline.reinforce(f"rar-{name}", settings(config.rar))
                result[name] = summary(folder / f"rar-{name}")
                keep()
    gains = [x["gain"] for x in result["seeds"].values()]
    print_result(
        f"held-out gain over {len(gains)} seeds: {np.mean(gains):+.3f}, {np.round(gains, 3)}"
    )
    for name in ("long", "collapse"):
        alarms = ", ".join(f"{x['name']} at {x['step']}" for x in result[name]["alarms"]) or "none"
        print_result(f"{name}: {result[name]['steps']} steps, alarms: {alarms}")
    print_result(str(study.result))


if __name__ == "__main__":
    with reported():
        study = tyro.cli(Study, description=__doc__)
        open_run(study.out / "seed")
        main(study)
