"""The command that writes a model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afmrl_jax.inference.shipped import models_of
from afmrl_jax.runs.export import export
from afmrl_jax.types import Role


@dataclass(frozen=True)
class Export:
    """Write a model as a folder that sentence-transformers, transformers and vLLM load.

    Some listings are embedded here and with torch from the folder; if their vectors differ, nothing
    is written. A generator is not compared: `afmrl check-endpoint` compares what serves it.
    """

    run: Path
    """Run directory of a finished `afmrl train`, or `demo-weights`."""
    out: Path
    """Folder to write; it must not exist."""
    system: str | None = None
    """Row of the results table, such as `infonce` or `agcl+distilled`; by default the last one."""
    model: Role = "embedder"
    """Which of the system's models: what embeds, or what writes attributes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; adapters are merged in float32 first."""
    check: bool = True
    """Compare vectors with torch, if it is installed."""
    catalogue: str | None = None
    """Catalogue of the compared listings; by default the run's own."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""

    def execute(self) -> None:
        """Run the command."""
        agreement = export(
            models_of(self.run),
            self.system,
            self.out,
            role=self.model,
            dtype=self.dtype,
            check=self.check,
            catalogue=self.catalogue,
            columns=self.columns,
        )
        if agreement is not None:
            print(f"checked: {agreement}")
        elif self.model == "generator":
            print("NOT CHECKED: compare its endpoint with `afmrl check-endpoint`")
        elif self.check:
            print("NOT CHECKED: torch is not installed here, so no vectors were compared")
        else:
            print("NOT CHECKED: --no-check")
        print(f"{self.out}: README.md says how to load it")
