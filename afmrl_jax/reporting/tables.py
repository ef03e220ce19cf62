"""The results of `evaluation.json` as tables: for a terminal, for Markdown, for the report.

Every function here accepts an evaluation with missing parts: a catalogue without categories has no
classification, and some evaluations have no baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from afmrl_jax.types import JsonObject

Evaluation = JsonObject
Row = JsonObject

MISSING = "-"
HEADINGS = {"accuracy": "Acc"}
"""Headings that differ from the name of their metric."""


@dataclass(frozen=True)
class Task:
    """One task of the evaluation and its shown metrics, in percent."""

    key: str
    title: str
    about: str
    metrics: tuple[str, ...]
    short: str = ""
    """Prefix of a metric when columns of several tasks share their names."""
    main: tuple[str, ...] = ()
    """Metrics of the report's main table; the others are in its details."""

    def heading(self, metric: str, *, qualified: bool = False) -> str:
        """Heading of a metric's column."""
        name = HEADINGS.get(metric, metric)
        return f"{self.short} {name}".strip() if qualified else name


RECALLS = ("R@1", "R@5", "R@10", "MRR")
HEADLINE = ("R@1", "MRR")
CLUSTERING = ("NMI", "ARI", "Purity")
TASKS = (
    Task(
        "fine",
        "Fine-grained",
        "a listing finds listings of the same product",
        RECALLS,
        main=("R@1", "MRR", "R@10"),
    ),
    Task(
        "coarse",
        "Coarse",
        "a listing finds listings of the same category",
        ("mAP@1", "mAP@5", "mAP@10"),
        main=("mAP@10",),
    ),
    Task(
        "text_to_image",
        "Text to image",
        "a title finds pictures of its product",
        RECALLS,
        "T>I",
        HEADLINE,
    ),
    Task(
        "image_to_multimodal",
        "Image to multimodal",
        "a picture finds whole listings of its product",
        RECALLS,
        "I>M",
        HEADLINE,
    ),
    Task(
        "image_to_image",
        "Image to image",
        "a picture finds pictures of its product",
        RECALLS,
        "I>I",
    ),
    Task(
        "classification",
        "Classification",
        "logistic regression on the frozen embeddings",
        ("accuracy",),
        main=("accuracy",),
    ),
    Task(
        "clustering",
        "Clustering",
        "k-means on the frozen embeddings, against the categories",
        CLUSTERING,
        main=("NMI",),
    ),
    Task(
        "clustering_type",
        "Clustering by type",
        "the same with as many clusters as types, against the types",
        CLUSTERING,
        "type",
    ),
    Task(
        "clustering_family",
        "Clustering by family",
        "the same with as many clusters as families, against the families",
        CLUSTERING,
        "family",
    ),
)
FINE = TASKS[0]
TERMINAL_BLOCKS = (
    ("fine", "coarse"),
    ("text_to_image", "image_to_multimodal"),
    ("image_to_image",),
    ("clustering_type", "clustering_family"),
)
TERMINAL_WIDTH = 80
TERMINAL_LAST = ("classification", "clustering")
MARKDOWN_COLUMNS = (
    ("fine", "R@1"),
    ("fine", "R@5"),
    ("fine", "R@10"),
    ("fine", "MRR"),
    ("coarse", "mAP@10"),
    ("text_to_image", "R@1"),
    ("image_to_multimodal", "R@1"),
    ("classification", "accuracy"),
    ("clustering", "NMI"),
    ("clustering", "ARI"),
    ("clustering", "Purity"),
)


@dataclass(frozen=True)
class Cell:
    """A value in percent with its 95 % interval; None if it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """The value with two decimals."""
        return MISSING if self.value is None else f"{self.value:.2f}"

    @property
    def interval(self) -> str:
        """The interval with one decimal, or an empty text."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:.1f}–{self.high:.1f}"


@dataclass(frozen=True)
class Difference:
    """A paired difference `after - before` of one metric, in points."""

    before: str
    after: str
    task: Task
    metric: str
    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """`higher`, `lower` or `includes zero`."""
        if not self.excludes_zero:
            return "includes zero"
        return "higher" if self.difference > 0 else "lower"


def number(value: object) -> float | None:
    """A finite number, or None: an empty task is written as null or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rows_of(evaluation: Evaluation | None) -> Sequence[Row]:
    """The rows of an evaluation; empty if there is no evaluation."""
    return (evaluation or {}).get("rows") or []


def cell(row: Row, task: str, metric: str) -> Cell:
    """A value of a row with its interval.

    Args:
        row: of `evaluation.json`.
        task: its key, as in `fine`.
        metric: its name, as in `R@1`.
    """
    value = number((row.get(task) or {}).get(metric))
    bounds = ((row.get("intervals") or {}).get(task) or {}).get(metric) or (None, None)
    low, high = (number(bound) for bound in bounds)
    return Cell(value, low, high) if value is not None else Cell(None)


def measured_tasks(evaluation: Evaluation | None) -> tuple[Task, ...]:
    """The tasks for which at least one row has a value."""
    rows = rows_of(evaluation)
    return tuple(
        task
        for task in TASKS
        if any(cell(row, task.key, m).value is not None for row in rows for m in task.metrics)
    )


def baselines_of(evaluation: Evaluation | None) -> list[tuple[str, list[Cell]]]:
    """Baselines without learning: name and R@1, R@5, R@10, MRR in percent."""
    found = (evaluation or {}).get("baselines") or {}
    return [
        (name, [Cell(number((values or {}).get(metric))) for metric in FINE.metrics])
        for name, values in found.items()
    ]


def reference(evaluation: Evaluation | None, name: str, task: str, metric: str) -> Cell:
    """What `chance` or the `ideal` has of a metric.

    Chance of a clustering is that of the last row's clusters, filled at random.
    """
    evaluation = evaluation or {}
    found = ((evaluation.get(name) or {}).get(task) or {}).get(metric)
    rows = rows_of(evaluation)
    if found is None and rows and name == "chance":
        found = ((rows[-1].get("chance") or {}).get(task) or {}).get(metric)
    return Cell(number(found))


def best_baseline(evaluation: Evaluation | None) -> tuple[str, float] | None:
    """Name and R@1 of the strongest baseline."""
    found = [(name, cells[0].value) for name, cells in baselines_of(evaluation)]
    known = [(name, value) for name, value in found if value is not None]
    return max(known, key=lambda pair: pair[1], default=None)


def differences(evaluation: Evaluation | None) -> list[Difference]:
    """Every paired difference of the evaluation, in the order of the tasks' metrics."""
    out = []
    for pair in (evaluation or {}).get("comparisons") or []:
        for task in TASKS:
            for metric in task.metrics:
                found = (pair.get("metrics") or {}).get(f"{task.key}.{metric}") or {}
                values = [number(found.get(name)) for name in ("difference", "low", "high")]
                known = [value for value in values if value is not None]
                if len(known) == 3:
                    out.append(Difference(pair["from"], pair["to"], task, metric, *known))
    return out


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells, the first column left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _block(evaluation: Evaluation, tasks: Sequence[Task]) -> list[str]:
    columns = [(task, metric) for task in tasks for metric in task.metrics]
    if not columns:
        return []
    fine = any(task is FINE for task, _ in columns)
    lines = [["", *(task.heading(metric, qualified=True) for task, metric in columns)]]
    for name, cells in baselines_of(evaluation) if fine else []:
        spare = [MISSING] * (len(columns) - len(cells))
        lines.append([name, *(x.text for x in cells), *spare])
    for row in rows_of(evaluation):
        lines.append([row["name"], *(cell(row, t.key, m).text for t, m in columns)])
    shown = ["  " + line for line in aligned(lines)]
    if len(tasks) > 1 and max(map(len, shown)) > TERMINAL_WIDTH:
        return [line for task in tasks for line in _block(evaluation, [task])]
    named = dict.fromkeys(
        f"{task.title} ({task.short})" if task.short else task.title for task, _ in columns
    )
    return [", ".join(named), *shown, ""]


def _difference_lines(evaluation: Evaluation) -> list[str]:
    found = [x for x in differences(evaluation) if x.task is FINE and x.metric in HEADLINE]
    if not found:
        return []
    lines = [
        [
            f"{x.before} -> {x.after}, {x.metric}",
            f"{x.difference:+.2f}",
            f"[{x.low:+.2f}, {x.high:+.2f}]",
            x.verdict,
        ]
        for x in found
    ]
    title = "Paired differences in fine-grained retrieval, in points, with 95 % intervals"
    return [title, *("  " + line for line in aligned(lines)), ""]


def text_table(evaluation: Evaluation) -> str:
    """The results for a terminal: blocks of at most 80 columns, in plain ASCII.

    Args:
        evaluation: the content of `evaluation.json`.
    """
    by_key = {task.key: task for task in measured_tasks(evaluation)}
    out: list[str] = []
    for keys in (*TERMINAL_BLOCKS, TERMINAL_LAST):
        out += _block(evaluation, [by_key[key] for key in keys if key in by_key])
    out += _difference_lines(evaluation)
    return "\n".join(out).rstrip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def markdown_table(evaluation: Evaluation, *, intervals: bool = True) -> str:
    """The baselines and rows as a Markdown table.

    Args:
        evaluation: the content of `evaluation.json`.
        intervals: whether each fine-grained value has its 95 % interval.
    """
    measured = {task.key: task for task in measured_tasks(evaluation)}
    columns = [(key, metric) for key, metric in MARKDOWN_COLUMNS if key in measured]
    headings = [measured[key].heading(metric, qualified=True) for key, metric in columns]
    lines = [["system", *headings], ["--", *["--:"] * len(columns)]]
    for name, cells in baselines_of(evaluation):
        values = dict(zip(FINE.metrics, (x.text for x in cells), strict=True))
        texts = [values[m] if key == "fine" else "" for key, m in columns]
        lines.append([_escaped(name), *texts])
    for row in rows_of(evaluation):
        texts = []
        for key, metric in columns:
            found = cell(row, key, metric)
            shown = intervals and key == "fine" and found.interval
            texts.append(f"{found.text} ({found.interval})" if shown else found.text)
        lines.append([_escaped(row["name"]), *texts])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
