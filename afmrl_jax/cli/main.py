"""Train on a catalogue of products, search it, and evaluate.

`afmrl COMMAND --help` describes a command and its options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from afmrl_jax import __version__
from afmrl_jax.cli.catalogue import (
    Annotate,
    CatalogueCheck,
    CatalogueConvert,
    CatalogueDraw,
    Oracle,
)
from afmrl_jax.cli.check_endpoint import CheckEndpoint
from afmrl_jax.cli.command import Command
from afmrl_jax.cli.evaluation import Baselines, Compare, Evaluate
from afmrl_jax.cli.export import Export
from afmrl_jax.cli.match import Match
from afmrl_jax.cli.plan import Plan
from afmrl_jax.cli.search import Embed, Search
from afmrl_jax.cli.serve import Serve
from afmrl_jax.cli.train import Config, Train, config_defaults, train_defaults
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs import audit as auditing
from afmrl_jax.runtime.distributed import launched_together
from afmrl_jax.runtime.object_store import working_copy
from afmrl_jax.runtime.outputs import is_marked, require_own_output
from afmrl_jax.runtime.setup import reported, set_up


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


@dataclass(frozen=True)
class Index:
    """Add to an index, remove from it, compact, describe, export; see `afmrl index --help`."""

    def execute(self) -> None:
        """Never called: `main` passes the arguments of `afmrl index` to a separate parser."""


@dataclass(frozen=True)
class Bench:
    """Measure how fast this package is; `afmrl bench --help` lists the benchmarks."""

    def execute(self) -> None:
        """Never called: `main` passes the arguments of `afmrl bench` to a separate parser."""


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "config": Config,
    "catalogue-check": CatalogueCheck,
    "catalogue-convert": CatalogueConvert,
    "catalogue-draw": CatalogueDraw,
    "annotate": Annotate,
    "oracle": Oracle,
    "embed": Embed,
    "search": Search,
    "index": Index,
    "serve": Serve,
    "match": Match,
    "evaluate": Evaluate,
    "compare": Compare,
    "baselines": Baselines,
    "export": Export,
    "check-endpoint": CheckEndpoint,
    "report": Report,
    "audit-negatives": AuditNegatives,
    "plan": Plan,
    "bench": Bench,
}
DEFAULTS: dict[str, Callable[[Sequence[str]], Command]] = {
    "train": train_defaults,
    "config": config_defaults,
}
"""Functions that make the defaults of a command's options from its arguments."""
OF_MANY_PROCESSES = (Train, Annotate)


def _summary(command: type) -> str:
    """The first paragraph of a command's docstring."""
    return " ".join((command.__doc__ or "").split("\n\n")[0].split())


def _parsed(arguments: list[str]) -> Command:
    """The command that the arguments describe."""
    name, rest = arguments[0] if arguments else "", arguments[1:]
    if name not in COMMANDS:
        # Prints the list of all commands, or what is wrong.
        listed = [
            Annotated[kind, tyro.conf.subcommand(name, description=_summary(kind))]
            for name, kind in COMMANDS.items()
        ]
        union: Any = Union[tuple(listed)]  # noqa: UP007
        return tyro.cli(union, prog="afmrl", description=__doc__, args=arguments)
    if name == "index":
        from afmrl_jax.cli import index

        return index.parsed(rest)
    # Only this command's options are set up: those of all commands take seconds.
    command, prog = COMMANDS[name], f"afmrl {name}"
    if name in DEFAULTS:
        return tyro.cli(command, prog=prog, args=rest, default=DEFAULTS[name](rest))
    return tyro.cli(command, prog=prog, args=rest)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with reported():
        if arguments[:1] == ["--version"]:
            print(f"afmrl-jax {__version__}")
            return
        if arguments[:1] == ["bench"]:
            from afmrl_jax.cli import (
                bench,
            )  # Few users need these, and they take a second to import.

            bench.main(arguments[1:])
            return
        command = _parsed(arguments)
        if not isinstance(command, OF_MANY_PROCESSES) and launched_together():
            raise ConfigError(
                "this command runs in one process, but a launcher has started several: start it "
                "with one task (`afmrl train` and `afmrl annotate` run on many)"
            )
        if not isinstance(command, Train):
            set_up()  # Train keeps compiled programs next to its run directory.
        command.execute()


if __name__ == "__main__":
    main()
