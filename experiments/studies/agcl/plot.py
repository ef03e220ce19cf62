"""The plot of the AGCL study."""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.reporting.drawing import INK, SERIES, SOFT, drawn, plain
from afmrl_jax.types import JsonObject


def draw_study(result: JsonObject, path: Path) -> None:
    """Difference to `infonce` of each variation: mean with its interval, and every seed."""
    rows = list(result["variations"].values())
    count = len(result["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    with drawn(path, (8.4, 0.8 + 0.36 * len(rows))) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, metric, colour in zip(panels, ("R@1", "R@5"), SERIES[:2], strict=True):
            for place, row in enumerate(rows):
                found = row["difference"][metric]
                if "low" in found:
                    axes.plot(
                        [found["low"], found["high"]], [place] * 2, color=colour, linewidth=1.6
                    )
                axes.plot(found["mean"], place, "D", color=colour, markersize=5, zorder=3)
                axes.plot(
                    found["values"],
                    [place + 0.24] * len(found["values"]),
                    "o",
                    markersize=3.2,
                    color=SOFT,
                    alpha=0.75,
                    markeredgewidth=0,
                )
            axes.axvline(0.0, color=INK, linewidth=0.9, zorder=0)
            axes.set_xlabel(f"{metric}, points above infonce", color=SOFT)
            plain(axes, "x")
        labels = [row["settings"]["label"] for row in rows]
        panels[0].set_yticks(range(len(rows)), labels, color=INK)
        panels[0].invert_yaxis()
        figure.suptitle(
            f"Mean of {seeds} with its 95 % interval; dots: every seed",
            color=SOFT,
            fontsize=9,
        )
