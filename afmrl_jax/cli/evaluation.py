"""Commands of `afmrl` that evaluate, and that compare evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from afmrl_jax.cli.catalogue import OnCatalogue
from afmrl_jax.errors import ConfigError
from afmrl_jax.evaluation.compare import compare, find_values
from afmrl_jax.evaluation.evaluate import is_evaluation, write_evaluation
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.reporting.comparison import comparison_table
from afmrl_jax.reporting.tables import text_table
from afmrl_jax.runs.evaluate import evaluate, evaluate_baselines
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import json_text
from afmrl_jax.runtime.outputs import require_own_output, whole_record
from afmrl_jax.runtime.provenance import PROVENANCE, provenance
from afmrl_jax.runtime.terminal import printable_lines


def _is_baselines(path: Path) -> bool:
    found = whole_record(path).keys()
    # Earlier versions wrote no provenance.
    return {"catalogue", "rows"} <= found <= {"catalogue", "rows", "per_query", *PROVENANCE}


def _is_comparison(path: Path) -> bool:
    return {"a", "b", "metrics"} <= whole_record(path).keys()


Split = Literal["all", "distill", "train", "reward", "test"]


@dataclass(frozen=True)
class Evaluate(OnCatalogue):
    """Evaluate every system of a run on a catalogue, possibly one it was not trained on."""

    split: Split = "test"
    """Listings that are queries and gallery."""

    def execute(self) -> None:
        """Run the command."""
        require_own_output(self.out, "afmrl evaluate", file=is_evaluation)
        evaluation = evaluate(
            FinishedRun(self.run),
            self.catalogue,
            self.split,
            self.out,
            skip_bad=self.skip_bad,
            columns=self.columns,
        )
        print(printable_lines(text_table(evaluation)))
        print(self.out)


@dataclass(frozen=True)
class Baselines:
    """Evaluate baselines that need no training, with the same tasks and definitions as runs.

    Raw pixels, a color histogram, BM25 over titles and over titles and attributes, and any embedder
    in a sentence-transformers or transformers folder.
    """

    catalogue: str
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, `hf://user/set#split`,
    `furniture` or `marketplace`."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    out: Path | None = None
    """JSON file to write, in the format of `evaluation.json`; by default nothing is written."""
    per_query: bool = True
    """Also write the values of single queries next to it, for `afmrl compare`."""
    embedder: tuple[Path, ...] = ()
    """Folders of embedders; needs sentence-transformers."""
    attributes: Path | None = None
    """Attributes for BM25, from `afmrl annotate`; by default the catalogue's own."""
    split: Split = "test"
    """Listings that are queries and gallery."""
    trust_code: bool = False
    """Run Python code from an embedder's folder."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""
    resamples: int = 2000
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of resampling and clustering."""

    def execute(self) -> None:
        """Run the command."""
        if self.out is not None:
            require_own_output(self.out, "afmrl baselines", file=_is_baselines)
        found = evaluate_baselines(
            self.catalogue,
            self.split,
            embedders=self.embedder,
            attributes=self.attributes,
            trust_code=self.trust_code,
            skip_bad=self.skip_bad,
            columns=self.columns,
            resamples=self.resamples,
            seed=self.seed,
        )
        print(printable_lines(text_table(found.evaluation)))
        if self.out is not None:
            folder = self.out.parent if self.per_query else None
            write_evaluation(self.out, folder, found, provenance())
            print(self.out)


@dataclass(frozen=True)
class Compare:
    """Compare two runs, or two systems of one, query by query.

    Prints differences with 95 % intervals (paired bootstrap) and p-values (paired permutation
    test), both over families. The runs must have been evaluated on the same listings.
    """

    run_a: tyro.conf.Positional[Path]
    """Before: a run directory, an evaluation.json, or a file of per-query values."""
    run_b: tyro.conf.Positional[Path]
    """After: same as above."""
    system_a: str | None = None
    """Row of A's results table; by default the last one."""
    system_b: str | None = None
    """Row of B's results table; by default the last one."""
    catalogue: str | None = None
    """Which of the runs' evaluations, by catalogue name; by default that of evaluation.json."""
    task: tuple[str, ...] = field(default_factory=tuple)
    """Tasks to show, such as `fine coarse`; by default all. The JSON has all."""
    out: Path | None = None
    """JSON file to write."""
    as_json: bool = False
    """Print JSON instead of a table."""
    resamples: int = 2000
    """Bootstrap resamples."""
    permutations: int = 10_000
    """Random permutations of the test, if there are too many families to enumerate all."""
    seed: int = 0
    """Seed of both."""

    def execute(self) -> None:
        """Run the command."""
        if self.out is not None:
            require_own_output(self.out, "afmrl compare", file=_is_comparison)
        for name in ("resamples", "permutations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: give one or more")
        found = compare(
            find_values(self.run_a, self.catalogue),
            find_values(self.run_b, self.catalogue),
            self.system_a,
            self.system_b,
            resamples=self.resamples,
            permutations=self.permutations,
            seed=self.seed,
        )
        whole = found | provenance()
        shown = json_text(whole, indent=1)
        print(shown if self.as_json else printable_lines(comparison_table(found, self.task)))
        if self.out is not None:
            write_json(self.out, whole)
