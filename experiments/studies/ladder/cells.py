"""A cell of the ladder: one system of one seed at one point, trained, judged, and written once."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.shuffled import shuffled_lists
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.evaluation.metrics import positive_ranks
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import DISTILLED, System, systems_of
from afmrl_jax.runs.embedder_stages import INFONCE
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.files import write_text
from afmrl_jax.runtime.json_files import json_text, read_checked
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.training.rar.query_parts import never_learned
from afmrl_jax.types import JsonObject
from experiments.studies.ladder.plan import ARM, Plan

Split = Literal["reward", "test"]
RIVALS: dict[str, tuple[str, JsonObject]] = {
    "afmrl+random-reward": ("rar-permuted", {"permute_rewards": True, "baseline": "rloo"}),
    "afmrl+best-of-group": ("rar-best", {"baseline": "best"}),
}
"""Controls of RAR: the stage of the generator, and what is changed of RAR's settings."""


@dataclass(frozen=True)
class Cell:
    """The file of a cell."""

    plan: str
    """Hash of the plan."""
    point: str
    seed: int
    system: str
    split: str
    ranks: list[int]
    """Rank of the best positive of each query, 0 where it has none."""
    families: list[tuple[str, int]]
    """Of the queries in order: a family, and how many of it follow one another."""
    seconds: float
    """What training and judging took in this call; less where stages were finished before."""
    made: dict[str, Any] = field(default_factory=dict)
    """Commit, versions and machine."""

    @property
    def family_of_query(self) -> np.ndarray:
        """Names, one a query."""
        names, counts = zip(*self.families, strict=True)
        return np.repeat(np.array(names), np.array(counts))

    def write(self, path: Path) -> None:
        """On one line, since results are kept of many."""
        write_text(path, json_text(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path, plan: str) -> Cell:
        """A finished cell.

        Raises:
            RunError: it is broken, or another plan made it.
        """
        found = read_checked(path, cls, remedy="delete it to make it again")
        if found.plan != plan:
            raise RunError(
                f"{path} was made by another plan ({found.plan}, not {plan}): a plan does not "
                "change under its results; choose another --out"
            )
        return found


def system_of(pipeline: Pipeline, name: str) -> System:
    """The embedder and generator of a system of the ladder.

    Raises:
        ConfigError: there is no such system.
    """
    if name.startswith(ARM):
        return System(name, name.replace(":", "-"), None)
    known = {x.name: x for x in systems_of(pipeline.config)}
    if name in RIVALS:
        return dataclasses.replace(known["afmrl"], name=name, generator=RIVALS[name][0])
    if name not in known:
        names = ", ".join([*known, *RIVALS])
        raise ConfigError(f"no system {name!r} in the ladder; choose from {names}, or {ARM}NAME")
    return known[name]


def train(pipeline: Pipeline, plan: Plan, system: System) -> None:
    """Run the stages that a system needs and that are not finished."""
    if system.name.startswith(ARM):
        pipeline.run_to(INFONCE)
        settings = plan.arm(pipeline.config, system.name)
        pipeline.train_r(system.embedder, settings, DISTILLED, in_input=False)
        return
    stages, needed = list(pipeline.stages()), [system.embedder]
    if system.name in RIVALS:
        stage, changes = RIVALS[system.name]
        pipeline.run_to(system.embedder)
        pipeline.reinforce(stage, rival_settings(pipeline.config.rar, changes))
        return
    if system.generator is not None:
        needed.append(system.generator)
    pipeline.run_to(max(needed, key=stages.index))


def rival_settings(rar: RarConfig, changes: JsonObject) -> RarConfig:
    """RAR's settings with what a control changes of them.

    A placebo keeps its baseline where that is made of the group's own rewards.
    """
    kept = rar.baseline not in ("greedy", "best") and "permute_rewards" in changes
    own = {x: y for x, y in changes.items() if not (kept and x == "baseline")}
    return dataclasses.replace(rar, **own)


def judge(pipeline: Pipeline, system: System, split: Split) -> tuple[np.ndarray, list[str]]:
    """Ranks and families of the queries of a split, the gallery being the split itself.

    Of `reward` those are asked on which RAR does not train.
    """
    catalogue = pipeline.catalogue.subset(split)
    lists: Lists | None = None
    if system.generator is not None:
        stage = f"lists-{split}-{system.generator}"
        pipeline.annotate(stage, system.generator, pipeline.catalogue.indices(split))
        lists = pipeline.lists.read(stage)
        if system.shuffled:
            lists = shuffled_lists(lists, catalogue.listings, pipeline.config.seed)
    run = FinishedRun(pipeline.run.folder)
    places = np.arange(len(catalogue.listings))
    texts = None if lists is None else lists.both
    vectors = run.encoder(system).embed(run.rows(catalogue), places, texts, label=system.name)
    products = np.array([x.true_product for x in catalogue.listings])
    asked = never_learned(catalogue.listings)
    ranks = positive_ranks(vectors[asked], vectors, products[asked], products, asked)
    return ranks, [catalogue.listings[int(n)].group for n in asked]


def make(
    pipeline: Pipeline, plan: Plan, point: str, name: str, split: Split, path: Path, made_by: str
) -> Cell:
    """Train and judge a system, and write its cell; a finished one is read."""
    if path.is_file():
        return Cell.read(path, made_by)
    began = time.monotonic()
    system = system_of(pipeline, name)
    train(pipeline, plan, system)
    ranks, families = judge(pipeline, system, split)
    seconds = round(time.monotonic() - began, 1)
    about = made_by, point, pipeline.config.seed, name, split
    runs = [(family, len(list(own))) for family, own in groupby(families)]
    cell = Cell(*about, ranks.tolist(), runs, seconds, provenance())
    cell.write(path)
    return cell
