"""Common parts of the experiments' plots: colors, axes, a PNG that is complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from afmrl_jax.runtime.files import atomic_path

INK, SOFT, LINE = "#1b2126", "#56616b", "#dcdfdc"
"""Colors of the report's light page."""
SERIES = ("#1f6f9c", "#b4531a", "#4f7a28", "#7b4fa3", "#a8336b", "#6b6b6b")


@contextmanager
def drawn(path: Path, size: tuple[float, float], font: float = 9.0) -> Iterator[Figure]:
    """A figure, written to `path` as a PNG if the block ends without an error.

    Args:
        path: of the PNG.
        size: width and height in inches, at 150 dots each.
        font: size of text in points.
    """
    with matplotlib.rc_context({"font.size": font}):
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid behind the data, and no frame except the two axes."""
    axes.tick_params(colors=SOFT, length=3)
    axes.grid(color=LINE, linewidth=0.7, axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
