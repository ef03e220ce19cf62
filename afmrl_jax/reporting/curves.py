"""What a plot shows, before it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from afmrl_jax.types import JsonObject

Lines = list[JsonObject]
"""Of a stage's metrics."""


@dataclass(frozen=True)
class Curve:
    """One metric of one stage."""

    label: str
    lines: Lines
    key: str
    errors: float = 0.0
    """Standard errors (`key` + `_error`) on either side that are drawn as a band; 0: none."""
    points: bool = False
    """Measured only at some steps: drawn with markers."""

    @property
    def values(self) -> list[tuple[float, float, float]]:
        """(step, value, half width of the band) of every finite point, by step."""
        found = []
        for line in self.lines:
            step, value = line.get("step"), line.get(self.key)
            if step is None or value is None or not math.isfinite(value):
                continue
            error = line.get(f"{self.key}_error") or 0.0
            width = self.errors * error if math.isfinite(error) else 0.0
            found.append((float(step), float(value), width))
        return sorted(found)


@dataclass(frozen=True)
class Plot:
    """Curves that share their axes."""

    title: str
    unit: str
    curves: list[Curve]
    note: str = ""
    zero_line: bool = False
    whole_range: tuple[float, float] | None = None
    """Limits of the y axis, for shares."""
    axis: str = "step"
    """What the curves' steps count."""
    doubling: bool = False
    """Equal distances on the x axis are doublings."""
