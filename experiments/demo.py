"""The whole of AFMRL in one command: every stage, the evaluation and the report.

    python experiments/demo.py                                  # minutes on two cores
    python experiments/demo.py --fast --out runs/smoke          # every stage, few steps
    python experiments/demo.py --catalogue my-shop --seed 1 --agcl.gamma 0.3

The same command continues a run that was interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from afmrl_jax.config import RunConfig
from afmrl_jax.reporting.tables import text_table
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.distributed import ClusterConfig
from afmrl_jax.runtime.progress import print_result
from afmrl_jax.runtime.setup import open_run, reported


@dataclass(frozen=True)
class Demo:
    """Distil G, train R, reinforce G, cycle once, evaluate, and write a report."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig.demo)
    out: Path = Path("runs/demo")
    """Run directory, or its home at gs:// or s3://. A finished stage in it is not repeated, a
    killed one goes on."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    fast: bool = False
    """Every stage with few steps on small pictures: shows that all works, not how well."""


def main(arguments: list[str]) -> None:
    """Parse, run, print the results table."""
    fast = "--fast" in arguments
    config = RunConfig.fast() if fast else RunConfig.demo()
    default = Demo(config, Path("runs/fast" if fast else "runs/demo"))
    demo = tyro.cli(Demo, args=arguments, default=default, description=__doc__)
    pipeline = Pipeline(open_run(demo.out, demo.cluster), demo.config)
    report = pipeline.execute()
    print_result(text_table(pipeline.evaluation()))
    print_result(f"report: {report}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
