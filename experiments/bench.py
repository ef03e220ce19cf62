"""Measure how fast this package is.

    python experiments/bench.py models --out experiments/results/bench_models.json

`models`: embedding, a training step of R on adapters and greedy decoding, against transformers on
the same weights and cores; compilation, looped, unrolled and from a warm cache; and on a GPU or TPU
the real sizes with random weights. Let nothing else run beside it. Figures are medians of ratios of
pairs that were measured in turn; the JSON has every spread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from benchmarks import models

from afmrl_jax.runtime import reported


@dataclass(frozen=True)
class Models:
    """Speed of the models: against torch, of compilation, and on an accelerator."""

    out: Path
    """JSON file to write."""
    settings: Annotated[models.Settings, tyro.conf.arg(name="")] = field(
        default_factory=models.Settings
    )

    def execute(self) -> None:
        """Run the benchmark."""
        print(json.dumps(models.run(self.settings, self.out), indent=1))


def main() -> None:
    """Entry point."""
    with reported():
        tyro.extras.subcommand_cli_from_dict({"models": Models}, description=__doc__).execute()


if __name__ == "__main__":
    main()
