"""The ladder's cells over seeds: tables, the primary tests beside what was predicted, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afmrl_jax.evaluation.primary import primary_over_seeds, primary_results
from afmrl_jax.evaluation.statistics import spread
from afmrl_jax.types import JsonObject
from experiments.studies.ladder.cells import Cell
from experiments.studies.ladder.plan import Plan

Cells = Mapping[str, Mapping[int, Mapping[str, Cell]]]
"""By point, seed and system; what is not finished is missing."""
METRICS = ("R@1", "MRR")


def values_of(cell: Cell) -> dict[str, np.ndarray]:
    """Of each query, by `fine.METRIC`; NaN for one without a positive."""
    ranks = np.array(cell.ranks, float)
    known = np.where(ranks > 0, ranks, np.nan)
    first = np.where(np.isnan(known), np.nan, (known == 1).astype(float))
    return {"fine.R@1": first, "fine.MRR": 1.0 / known}


def summarise(plan: Plan, cells: Cells) -> JsonObject:
    """Everything that the page shows.

    Args:
        plan: of the ladder.
        cells: those that are finished.
    """
    points = {}
    for name, point in plan.points.items():
        seeds = cells.get(name, {})
        found = {x: _means(seeds, x) for x in point.systems}
        points[name] = {
            "axis": point.axis,
            "at": point.at,
            "systems": {x: y for x, y in found.items() if y is not None},
            "tests": [] if point.axis else tests_of(plan, seeds, point.systems),
        }
    return {"state": plan.state, "about": plan.about, "points": points}


def _means(seeds: Mapping[int, Mapping[str, Cell]], system: str) -> JsonObject | None:
    done = {seed: x[system] for seed, x in sorted(seeds.items()) if system in x}
    if not done:
        return None
    every = [values_of(x) for x in done.values()]
    means = {
        metric: spread([100 * float(np.nanmean(x[f"fine.{metric}"])) for x in every])
        for metric in METRICS
    }
    return {"seeds": list(done)} | means


def tests_of(
    plan: Plan, seeds: Mapping[int, Mapping[str, Cell]], systems: Sequence[str]
) -> list[JsonObject]:
    """The primary tests over the seeds whose systems are all finished, with the predictions."""
    whole = [x for _, x in sorted(seeds.items()) if set(systems) <= x.keys()]
    if not whole:
        return []
    families = whole[0][systems[0]].family_of_query
    runs = [{name: values_of(x[name]) for name in systems} for x in whole]
    tests = [x.test for x in plan.tests]
    if len(runs) == 1:
        found = primary_results(runs[0], families, tests=tests)
    else:
        found = primary_over_seeds(runs, families, tests=tests)
    expected = {(x.before, x.after): (x.low, x.high) for x in plan.tests}
    return [x | {"predicted": list(expected[x["from"], x["to"]]), "runs": len(runs)} for x in found]
