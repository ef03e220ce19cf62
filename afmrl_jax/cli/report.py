"""`afmrl report` and `afmrl audit-negatives`: pages about a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs import audit as auditing
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.runtime.outputs import is_marked, require_own_output


@dataclass(frozen=True)
class Report:
    """Rewrite a run's report."""

    run: Path
    """Run directory."""
    out: Path | None = None
    """File to write. Default: report.html in the run, or in the current folder if the run is in
    object storage, because a job may be working on it."""

    def execute(self) -> None:
        """Run the command."""
        # Imports matplotlib, which takes seconds.
        from afmrl_jax.reporting.report import PAGE_TITLE, build_report

        folder = working_copy(self.run)
        here = None if folder == self.run else Path("report.html")
        out = self.out or here
        if out is not None:
            require_own_output(out, "afmrl report", file=lambda x: is_marked(x, PAGE_TITLE))
        print(build_report(folder, out))


@dataclass(frozen=True)
class AuditNegatives:
    """Show the effect of weights and masks on a run's training batches, pair by pair, as a page.

    The page's figures are also written as JSON next to it.
    """

    run: Path
    """Run directory."""
    out: Path
    """The page to write, `.html`."""
    stage: str = "agcl-distilled"
    """Stage whose embedder and batches are used: `infonce`, `agcl`, `agcl-distilled`, `cit-1`,
    `backbone`."""
    batches: int = 4
    """Number of its training batches, spread over its steps."""
    batch_size: int | None = None
    """Pairs per batch; by default the stage's, at most 1024. Another size draws other batches."""
    shown: int = 12
    """Pairs in each list."""
    gamma: float | None = None
    """Use this scale of the weights instead of the stage's."""
    delta: float | Literal["off"] | None = None
    """Use this margin instead of the stage's, or none."""
    agreement_rho: float | Literal["off"] | None = None
    """Use this share of agreement instead of the stage's, or none."""
    agreement_epsilon: float | None = None
    """Use this depth of agreement instead of the stage's."""

    def execute(self) -> None:
        """Run the command."""
        chosen = (self.gamma, self.delta, self.agreement_rho, self.agreement_epsilon)
        found = auditing.audit(
            FinishedRun(self.run),
            self.out,
            stage=self.stage,
            batches=self.batches,
            batch_size=self.batch_size,
            shown=self.shown,
            overrides=auditing.Overrides(*chosen),
        )
        masked, left = found["masked"], found["left"]
        print(
            f"{found['pairs']} pairs of {found['batches']} batches: {100 * masked['share']:.2f} % "
            f"masked, {masked['false_negatives']} of {masked['pairs']} truly the same product; "
            f"{left['false_negatives']} such pairs not masked"
        )
        print(self.out)
