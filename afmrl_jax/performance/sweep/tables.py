"""The sweep's rows as a table and as a plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from afmrl_jax.reporting.drawing import INK, SERIES, SOFT, drawn, plain
from afmrl_jax.types import JsonObject

MARKS = "osD^vP"
Row = JsonObject
MEASURED = "best product of two matrices measured in this run"
"""Source of a row's peak if it is not a vendor's figure."""
HEAD = (
    "model",
    "task",
    "batch",
    "visual",
    "type",
    "mesh",
    "remat",
    "samples/s",
    "tokens/s",
    "images/s",
    "rollouts/s",
    "MFU %",
    "HFU %",
    "peak MB",
    "compile s",
    "data wait %",
    "sent MB/step",
)


def cells(row: Row) -> list[str]:
    """A row's entries under `HEAD`."""
    own = row["cell"]
    start = [
        own["model"],
        own["task"],
        str(own["batch_size"]),
        str(own["visual_tokens"]),
        own["dtype"],
        own["mesh"].replace("data=", "").replace(",model=", " x "),
        own["remat"],
    ]
    if row["status"] != "done":
        return [*start, row["status"], *[""] * (len(HEAD) - len(start) - 1)]

    def middle(name: str) -> str:
        return f"{row[name]['median']:,.1f}" if name in row else "-"

    return [
        *start,
        *(middle(f"{x}_per_second") for x in ("samples", "tokens", "images", "rollouts")),
        *("?" if row.get(x) is None else f"{100 * row[x]:.1f}" for x in ("mfu", "hfu")),
        f"{row['peak_bytes'] / 1e6:,.0f}",
        f"{row['compile_seconds']:.1f}",
        f"{100 * row['data_wait_share']:.1f}",
        f"{row['collective_bytes'] / 1e6:,.1f}" if "collective_bytes" in row else "-",
    ]


def with_one_peak(rows: list[Row]) -> list[Row]:
    """Give all rows with a measured peak the highest one measured, so that they can be compared.

    Other work on the machine can only lower a measured peak.
    """
    own = [x for x in rows if x["status"] == "done" and x["peak_source"] == MEASURED]
    best = max((x["peak_tflops"] for x in own), default=0.0)
    found = []
    for row in rows:
        if row in own:
            row = row | {"peak_tflops": best}
            done, seconds = row["useful_tflop_per_step"], row["seconds_per_step"]["median"]
            again = row.get("recomputed_tflop_per_step")
            for name, work in (("mfu", done), ("hfu", None if again is None else done + again)):
                if work is not None:
                    share = work / seconds / best
                    row[name] = None if share > 1 else round(share, 5)
        found.append(row)
    return found


def markdown(rows: list[Row]) -> str:
    """The table in Markdown with aligned columns, and below it why rows are missing."""
    table = [list(HEAD), *(cells(x) for x in rows)]
    widths = [max(len(line[n]) for line in table) for n in range(len(HEAD))]
    lines = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(r, widths, strict=True)) + " |" for r in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"\n* {x['label']}: {x['status']}. {x['why']}" for x in rows if x["status"] != "done"]
    return "\n".join(lines) + "\n" + "".join(notes) + ("\n" if notes else "")


def draw(rows: list[Row], path: Path, note: str) -> None:
    """Plot listings per second and utilization by batch, one line per set of other settings."""
    done = [x for x in rows if x["status"] == "done"]
    tasks = sorted({x["cell"]["task"] for x in done})
    with drawn(path, (9.6, 0.9 + 2.3 * max(1, len(tasks))), font=8.5) as figure:
        grid = figure.subplots(max(1, len(tasks)), 2, squeeze=False, sharex="row")
        for panels, task in zip(grid, tasks, strict=False):
            _draw_task(panels, task, [x for x in done if x["cell"]["task"] == task])
        figure.suptitle(note, color=SOFT, fontsize=8)


def _name(own: JsonObject, shown: list[str]) -> str:
    return ", ".join(str(own[x]) if x != "visual_tokens" else f"{own[x]} visual" for x in shown)


def _draw_task(panels: np.ndarray, task: str, rows: list[Row]) -> None:
    options = ("model", "visual_tokens", "dtype", "mesh", "remat")
    shown = [x for x in options if len({r["cell"][x] for r in rows}) > 1] or ["model"]
    names = list(dict.fromkeys(_name(x["cell"], shown) for x in rows))
    rate = "rollouts_per_second" if task in ("generate", "rar") else "samples_per_second"
    for number, name in enumerate(names):
        own = sorted(
            (x for x in rows if _name(x["cell"], shown) == name),
            key=lambda x: x["cell"]["batch_size"],
        )
        look = {
            "color": SERIES[number % 6],
            "marker": MARKS[number % 6],
            "linestyle": ("-", "--", ":", "-.")[number // 6 % 4],
        }
        places = [x["cell"]["batch_size"] for x in own]
        found = [x[rate] for x in own]
        middle = [x["median"] for x in found]
        sides = [
            [m - x["min"] for m, x in zip(middle, found, strict=True)],
            [x["max"] - m for m, x in zip(middle, found, strict=True)],
        ]
        panels[0].errorbar(
            places, middle, sides, markersize=4, linewidth=1.2, elinewidth=0.7, label=name, **look
        )
        used = [float("nan") if x["mfu"] is None else 100 * x["mfu"] for x in own]
        panels[1].plot(places, used, markersize=4, linewidth=1.2, **look)
    panels[0].set_ylabel(
        f"{task}: {'lists' if 'roll' in rate else 'listings'} per second", color=SOFT
    )
    panels[1].set_ylabel("MFU, %", color=SOFT)
    # The axis starts at 0, far below the rates, so there is room at the bottom.
    panels[0].legend(fontsize=6.5, frameon=False, labelcolor=INK, loc="lower center", ncols=2)
    for axes in panels:
        axes.set_xscale("log", base=2)
        ticks = sorted({x["cell"]["batch_size"] for x in rows})
        axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel("batch of the whole mesh", color=SOFT)
        axes.margins(x=0.08, y=0.14)
        axes.set_ylim(bottom=0)
        plain(axes)
