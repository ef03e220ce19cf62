"""Curves of the stages as inline SVG that takes its colors from the page around it."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from afmrl_jax.reporting.curves import Curve, Lines, Plot
from afmrl_jax.reporting.rar_plots import reinforcement_plots
from afmrl_jax.runtime.metrics_log import read_metrics

# Matplotlib needs real colors; these placeholders become variables of the page's style sheet, so
# that one picture serves a light and a dark page.
PLACEHOLDERS = {
    "#a00001": "var(--ink)",
    "#a00002": "var(--soft)",
    "#a00003": "var(--line)",
    "#b00001": "var(--series-1)",
    "#b00002": "var(--series-2)",
    "#b00003": "var(--series-3)",
    "#b00004": "var(--series-4)",
    "#b00005": "var(--series-5)",
}
INK, SOFT, LINE, *SERIES = PLACEHOLDERS
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""One dash pattern per series, so that color is never the only difference."""


@dataclass(frozen=True)
class Drawn:
    """A finished plot: its picture, and its content in words for those who cannot see it."""

    title: str
    note: str
    svg: str
    summary: str


def _new_axes(plot: Plot) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 2.75), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(plot.axis, color=SOFT)
    axes.set_ylabel(plot.unit, color=SOFT)
    axes.tick_params(colors=SOFT, length=3)
    if plot.doubling:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_curve(axes: Axes, curve: Curve, place: int) -> None:
    steps, values, widths = zip(*curve.values, strict=True)
    few = curve.points or len(steps) < 3
    axes.plot(
        steps,
        values,
        label=curve.label,
        color=SERIES[place % len(SERIES)],
        linestyle=DASHES[place % len(DASHES)],
        linewidth=1.6,
        marker="o" if few else None,
        markersize=4,
    )
    if any(widths):
        low = [v - w for v, w in zip(values, widths, strict=True)]
        high = [v + w for v, w in zip(values, widths, strict=True)]
        axes.fill_between(
            steps, low, high, color=SERIES[place % len(SERIES)], alpha=0.18, linewidth=0
        )


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element without outside references or ids that could collide."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Inside HTML the parser knows the namespaces, so the page need not contain any URL.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    for stand_in, variable in PLACEHOLDERS.items():
        text = text.replace(stand_in, variable)
    # The size comes from the page; the figure around it describes the picture.
    return re.sub(
        r'<svg height="[^"]*"(.*?) width="[^"]*"|<svg width="[^"]*" height="[^"]*"',
        r'<svg aria-hidden="true" focusable="false"\1',
        text,
        count=1,
        flags=re.DOTALL,
    )


def _summary(curves: list[Curve], axis: str) -> str:
    parts = []
    for curve in curves:
        (first, start, _), (last, end, _) = curve.values[0], curve.values[-1]
        parts.append(
            f"{curve.label}: {start:.3g} at {axis} {first:.0f}"
            + (f", {end:.3g} at {axis} {last:.0f}" if last > first else "")
        )
    return "; ".join(parts)


def draw(plot: Plot, number: int = 0) -> Drawn | None:
    """Draw a plot; None if none of its curves has a point.

    Args:
        plot: what to draw.
        number: of the plot on its page, for unique ids.
    """
    curves = [curve for curve in plot.curves if curve.values]
    if not curves:
        return None
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.size": 9.0}
    ):
        figure, axes = _new_axes(plot)
        for place, curve in enumerate(curves):
            _draw_curve(axes, curve, place)
        if plot.zero_line:
            axes.axhline(0.0, color=SOFT, linewidth=0.9)
        if plot.whole_range is not None:
            axes.set_ylim(*plot.whole_range)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=2.6)
        return Drawn(
            plot.title, plot.note, _svg(figure, f"plot{number}"), _summary(curves, plot.axis)
        )


def read_stages(run: Path) -> dict[str, Lines]:
    """The metrics of every stage of a run that has any.

    Raises:
        RunError: a whole line of a file is broken.
    """
    found = {}
    for path in sorted(run.glob("*/metrics.jsonl")):
        if lines := read_metrics(path):
            found[path.parent.name] = lines
    return found


def embedder_stages(stages: dict[str, Lines]) -> list[str]:
    """The stages that train the embedder, in the order of the method."""
    known = [x for x in ("backbone", "infonce", "agcl", "agcl-distilled") if x in stages]
    return known + sorted(x for x in stages if re.fullmatch(r"cit-(control-)?\d+", x))


def _embedder_plots(stages: dict[str, Lines]) -> list[Plot]:
    names = embedder_stages(stages)
    guided = [name for name in names if name not in ("backbone", "infonce")]
    return [
        Plot(
            "Embedder: contrastive loss",
            "nats",
            [Curve(x, stages[x], "loss") for x in names],
            "The weights of AGCL change the scale of its loss: compare the shapes of the curves "
            "with that of InfoNCE, not their heights.",
        ),
        Plot(
            "Embedder: best in its batch",
            "share of queries",
            [Curve(x, stages[x], "accuracy") for x in names],
            "Queries whose own candidate scores above every negative of the batch.",
        ),
        Plot(
            "Embedder: negatives masked by the margin",
            "share of pairs",
            [Curve(x, stages[x], "masked_by_margin") for x in guided],
            "Pairs that AGCL treats as false negatives.",
        ),
    ]


def _distillation_plot(stages: dict[str, Lines]) -> Plot:
    return Plot(
        "Generator: distillation loss",
        "nats per token",
        [Curve("distill", stages.get("distill", []), "loss")],
    )


def _drawn(plots: list[Plot], first: int = 0) -> list[Drawn]:
    """Draw the plots that have a point, numbered from `first`."""
    drawn = [draw(plot, number) for number, plot in enumerate(plots, first)]
    return [plot for plot in drawn if plot is not None]


def stage_plots(run: Path) -> tuple[list[Drawn], list[Drawn]]:
    """All curves that the stages of a run have written so far: of RAR, and of the others.

    Of RAR's the first is the one that decides.

    Args:
        run: the run directory.
    """
    stages = read_stages(run)
    reinforcement = reinforcement_plots(stages.get("rar", []))
    others = [_distillation_plot(stages), *_embedder_plots(stages)]
    return _drawn(reinforcement, len(others)), _drawn(others)


def main_plots(run: Path) -> list[Drawn]:
    """The few curves to watch while a run trains.

    Args:
        run: the run directory.
    """
    stages = read_stages(run)
    loss, best, *_ = _embedder_plots(stages)
    _, reward, *_ = reinforcement_plots(stages.get("rar", []))
    return _drawn([_distillation_plot(stages), loss, best, reward])
