"""Train on a catalogue of products, search it, and evaluate.

`afmrl COMMAND --help` describes a command and its options.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from afmrl_jax import __version__
from afmrl_jax.cli.command import Command
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.distributed import launched_together
from afmrl_jax.runtime.setup import reported, set_up


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


COMMANDS = {
    "train": "train:Train",
    "config": "train:Config",
    "catalogue-check": "catalogue:CatalogueCheck",
    "catalogue-convert": "catalogue:CatalogueConvert",
    "catalogue-draw": "catalogue:CatalogueDraw",
    "annotate": "catalogue:Annotate",
    "oracle": "catalogue:Oracle",
    "embed": "search:Embed",
    "search": "search:Search",
    "index": "main:Index",
    "serve": "serve:Serve",
    "match": "match:Match",
    "evaluate": "evaluation:Evaluate",
    "compare": "evaluation:Compare",
    "baselines": "evaluation:Baselines",
    "export": "export:Export",
    "check-endpoint": "check_endpoint:CheckEndpoint",
    "report": "report:Report",
    "audit-negatives": "report:AuditNegatives",
    "plan": "plan:Plan",
    "bench": "main:Bench",
}
"""Where in `afmrl_jax.cli` the class of each command is: one command loads no other."""
DEFAULTS = {"train": "train_defaults", "config": "config_defaults"}
"""Functions of its module that make the defaults of a command's options from its arguments."""
OF_MANY_PROCESSES = ("train", "annotate")


def command_class(name: str) -> type[Command]:
    """The class of a command, imported."""
    module, kind = COMMANDS[name].split(":")
    found: type[Command] = getattr(import_module(f"afmrl_jax.cli.{module}"), kind)
    return found


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
            for name in COMMANDS
            for kind in [command_class(name)]
        ]
        union: Any = Union[tuple(listed)]  # noqa: UP007
        return tyro.cli(union, prog="afmrl", description=__doc__, args=arguments)
    if name == "index":
        from afmrl_jax.cli import index

        return index.parsed(rest)
    # Only this command's options are set up: those of all commands take seconds.
    command, prog = command_class(name), f"afmrl {name}"
    if name in DEFAULTS:
        defaults = getattr(import_module(command.__module__), DEFAULTS[name])
        return tyro.cli(command, prog=prog, args=rest, default=defaults(rest))
    return tyro.cli(command, prog=prog, args=rest)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with reported():
        if arguments[:1] == ["--version"]:
            print(f"afmrl-jax {__version__}")
            return
        if arguments[:1] == ["bench"]:
            from afmrl_jax.cli import bench

            bench.main(arguments[1:])
            return
        command = _parsed(arguments)
        if arguments[0] not in OF_MANY_PROCESSES and launched_together():
            raise ConfigError(
                "this command runs in one process, but a launcher has started several: start it "
                "with one task (`afmrl train` and `afmrl annotate` run on many)"
            )
        if arguments[0] != "train":
            set_up()  # Train keeps compiled programs next to its run directory.
        command.execute()


if __name__ == "__main__":
    main()
