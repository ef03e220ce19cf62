"""Whether each step of the method gains where it should, over seeds, against its controls.

    python -m experiments.studies.ladder --points primary --seeds 0      # on `reward`: for choosing
    python -m experiments.studies.ladder --split test --out runs/ladder  # days on two cores

Reads `plan.json` beside this module (or --plan): dials, settings, the one list of primary tests and
what was predicted, which is committed before any result. A cell is a system of a seed at a point of
the plan; each is a JSON file in OUT/cells-SPLIT, written when it is finished, and after each
OUT/page-SPLIT.html is drawn anew. Killed at any moment, the same command goes on: stages resume
from their checkpoints, finished cells are read. A plan that has changed since is refused, and the
test split is read only by a plan whose state is `fixed`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tyro

from afmrl_jax.errors import ConfigError
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.progress import log_info, print_result
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import open_run, reported
from experiments.studies.ladder.cells import Cell, Split, make
from experiments.studies.ladder.page import write_page
from experiments.studies.ladder.plan import ARM, PLAN, Plan, plan_hash
from experiments.studies.ladder.summary import summarise


@dataclass(frozen=True)
class Ladder:
    """What is run of a plan, and where it goes."""

    plan: Path = PLAN
    points: tuple[str, ...] = ()
    """Points of the plan; none for all."""
    seeds: tuple[int, ...] = ()
    """None for those of each point."""
    split: Split = "reward"
    """Listings that are judged: `reward` for choosing settings, `test` once they are fixed."""
    out: Path = Path("runs/ladder")
    draw: bool = False
    """Train and judge nothing: only draw the page of the cells that are in `out`."""


def cell_path(out: Path, split: Split, point: str, seed: int, system: str) -> Path:
    """File of a cell."""
    name = system.replace(":", "-")
    return out / f"cells-{split}" / point / f"seed-{seed}" / f"{name}.json"


class Runner:
    """Goes through the cells of a plan in order, and keeps the page up to date."""

    def __init__(self, settings: Ladder):
        self._settings = settings
        self._plan = plan = Plan.read(settings.plan)
        self._hash = plan_hash(settings.plan)
        unknown = sorted({*settings.points} - {*plan.points})
        if unknown:
            raise ConfigError(
                f"the plan has no point {', '.join(unknown)}; it has {', '.join(plan.points)}"
            )
        if settings.split == "test" and plan.state != "fixed":
            raise ConfigError(
                f"{settings.plan} is a {plan.state}: the test split is read once its settings are "
                'chosen on `reward`; set "state": "fixed" in it, and commit it first'
            )
        self._cells: dict[str, dict[int, dict[str, Cell]]] = {}

    def _path(self, point: str, seed: int, system: str) -> Path:
        return cell_path(self._settings.out, self._settings.split, point, seed, system)

    def run(self) -> Path:
        """All cells that are asked for; returns the page."""
        self._read_finished()
        page = self._draw()
        if self._settings.draw:
            return page
        for point in self._settings.points or tuple(self._plan.points):
            for seed in self._settings.seeds or self._plan.seeds_of(point):
                page = self._run_seed(point, seed)
        return page

    def _read_finished(self) -> None:
        for point, about in self._plan.points.items():
            for seed in {*self._plan.seeds_of(point), *self._settings.seeds}:
                for system in about.systems:
                    path = self._path(point, seed, system)
                    if path.is_file():
                        self._add(Cell.read(path, self._hash))

    def _add(self, cell: Cell) -> None:
        self._cells.setdefault(cell.point, {}).setdefault(cell.seed, {})[cell.system] = cell

    def _run_seed(self, point: str, seed: int) -> Path:
        systems = self._plan.points[point].systems
        left = [x for x in systems if x not in self._cells.get(point, {}).get(seed, {})]
        if not left:
            return self._draw()
        folder = self._settings.out / point / f"seed-{seed}"
        config = self._plan.config(point, seed)
        # Systems without lists need those of the training split alone.
        lone = all(x.startswith(ARM) or x in ("infonce", "agcl") for x in systems)
        annotated = ("train",) if lone else ("train", "reward", "test")
        pipeline = Pipeline(folder, config, annotated)
        page = self._draw()
        with closing(pipeline.run):
            for system in left:
                log_info(f"{point}, seed {seed}: {system}")
                path, split = self._path(point, seed, system), self._settings.split
                self._add(make(pipeline, self._plan, point, system, split, path, self._hash))
                page = self._draw()
        return page

    def _draw(self) -> Path:
        """Write summary and page."""
        plan, out, split = self._plan, self._settings.out, self._settings.split
        wanted = sum(len(plan.seeds_of(x)) * len(y.systems) for x, y in plan.points.items())
        done = sum(len(x) for seeds in self._cells.values() for x in seeds.values())
        found = summarise(plan, self._cells)
        found |= {"plan": self._hash, "split": split, "done": done, "all": wanted}
        write_json(out / f"summary-{split}.json", found | provenance())
        return write_page(found, out / f"page-{split}.html")


def main(settings: Ladder) -> None:
    """Run, and say where the page is."""
    print_result(str(Runner(settings).run()))


if __name__ == "__main__":
    with reported():
        settings = tyro.cli(Ladder, description=__doc__)
        open_run(settings.out / "ladder")
        main(settings)
