"""The whole of AFMRL on pretrained Qwen weights and your own catalogue.

    python experiments/pretrained.py --catalogue my-shop --out runs/my-shop \
        --embedder.weights /models/Qwen2-VL-2B-Instruct \
        --generator.weights /models/Qwen2.5-VL-3B-Instruct

The embedder learns low-rank adapters and the generator all its weights, in bfloat16 with layers
recomputed in the backward pass; every setting is an option. `afmrl plan` says beforehand what fits
which devices. The same command continues a run that was interrupted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from afmrl_jax.config import RunConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.reporting.tables import text_table
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.distributed import ClusterConfig
from afmrl_jax.runtime.progress import print_result
from afmrl_jax.runtime.setup import open_run, reported


@dataclass(frozen=True)
class Pretrained:
    """Distil G, train R, reinforce G, cycle, evaluate, and write a report."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=RunConfig.pretrained
    )
    out: Path = Path("runs/pretrained")
    """Run directory, or its home at gs:// or s3://. A finished stage in it is not repeated, a
    killed one goes on."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def main(arguments: list[str]) -> None:
    """Parse, run, print the results table."""
    chosen = tyro.cli(Pretrained, args=arguments, description=__doc__)
    for name, settings in (
        ("embedder", chosen.config.embedder),
        ("generator", chosen.config.generator),
    ):
        if settings.weights is None:
            raise ConfigError(f"give --{name}.weights, the folder of a pretrained model")
    pipeline = Pipeline(open_run(chosen.out, chosen.cluster), chosen.config)
    report = pipeline.execute()
    print_result(text_table(pipeline.evaluation()))
    print_result(f"report: {report}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
