"""The plot of the RAR study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from afmrl_jax.reporting.drawing import INK, SERIES, SOFT, drawn, plain
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _curve(axes: Axes, lines: list[JsonObject], name: str, *, color: str, alpha: float) -> None:
    points = [(x["step"], x[name]) for x in lines if name in x]
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1.3, color=color, alpha=alpha)


def draw_rar_study(result: JsonObject, path: Path) -> None:
    """Held-out reward and length of every seed, of the long run and of the collapse; memory."""
    with drawn(path, (9.6, 5.2)) as figure:
        panels = figure.subplots(2, 3)
        every = [x["lines"] for x in result["seeds"].values()]
        long = result.get("long", {}).get("lines", [])
        collapse = result.get("collapse", {}).get("lines", [])
        plans = (
            ("held-out reward, every seed", "held_out/reward", every, SERIES[0]),
            ("attributes per list, every seed", "held_out/attribute_count", every, SERIES[0]),
            ("held-out reward, long run", "held_out/reward", [long], SERIES[0]),
            ("attributes per list, long run", "held_out/attribute_count", [long], SERIES[0]),
            (
                "held-out reward, no KL, high learning rate",
                "held_out/reward",
                [collapse],
                SERIES[1],
            ),
            ("host memory in GB, long run", "host_memory_gb", [long], SERIES[0]),
        )
        for axes, (title, name, curves, colour) in zip(panels.flat, plans, strict=True):
            for lines in curves:
                _curve(axes, lines, name, color=colour, alpha=0.8)
            axes.set_title(title, color=INK, fontsize=9, loc="left")
            axes.set_xlabel("step", color=SOFT)
            plain(axes)
        panels[1, 2].set_ylim(bottom=0)
        for alarm in result.get("collapse", {}).get("alarms", []):
            panels[1, 1].axvline(alarm["step"], color=INK, linewidth=0.9, linestyle=":")
