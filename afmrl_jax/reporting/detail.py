"""Results beyond the main table: other definitions, shorter vectors, latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afmrl_jax.reporting.curves import Curve, Plot
from afmrl_jax.reporting.plots import Drawn, draw
from afmrl_jax.reporting.tables import MISSING, TASKS, Evaluation, number, reference, rows_of
from afmrl_jax.types import JsonObject

FIRST_PLOT = 100
"""Number of the first plot here, after those of the stages."""
DEFINITIONS = (
    ("fine", "map_m5@10", "Fine map_m5@10"),
    ("fine", "prec_m5@10", "Fine prec_m5@10"),
    ("coarse", "map_m5@1", "Coarse map_m5@1"),
    ("coarse", "map_m5@10", "Coarse map_m5@10"),
    ("coarse", "prec_m5@10", "Coarse prec_m5@10"),
)
MACRO = (
    ("fine", "R@1", "Fine R@1"),
    ("coarse", "mAP@10", "Coarse mAP@10"),
    ("text_to_image", "R@1", "T>I R@1"),
    ("image_to_multimodal", "R@1", "I>M R@1"),
    ("classification", "accuracy", "Acc"),
)
LATENCY = (
    ("encode_one", "Encode one listing"),
    ("encode_batch", "Encode {batch}"),
    ("search_exact_one", "Exact search, one query"),
    ("search_exact_batch", "Exact search, {batch}"),
    ("search_scann_one", "ScaNN, one query"),
    ("search_scann_batch", "ScaNN, {batch}"),
)


@dataclass(frozen=True)
class Table:
    """A table of texts; its first column names the rows."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def _text(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.2f}"


def _count(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.0f}"


def _by_row(
    rows: Sequence[JsonObject],
    columns: Sequence[tuple[str, str, str]],
    part: str | None = None,
) -> list[tuple[str, ...]]:
    """Values of some columns, from `part` of each row; no rows if none has a value."""
    out = []
    for row in rows:
        values = row if part is None else row.get(part) or {}
        texts = [_text((values.get(task) or {}).get(metric)) for task, metric, _ in columns]
        out.append((str(row["name"]), *texts))
    return out if any(set(line[1:]) != {MISSING} for line in out) else []


def _with_references(
    evaluation: Evaluation | None, columns: Sequence[tuple[str, str, str]]
) -> list[tuple[str, ...]]:
    """Values of the rows, then chance and the ideal where they are known."""
    found = _by_row(rows_of(evaluation), columns)
    for name in ("chance", "ideal") if found else ():
        texts = [reference(evaluation, name, task, metric).text for task, metric, _ in columns]
        if set(texts) != {MISSING}:
            found.append((name, *texts))
    return found


def metrics_table(evaluation: Evaluation | None) -> Table | None:
    """The metrics of the main table's tasks that it has no room for."""
    columns = [
        (t.key, m, f"{t.short or t.title} {m}")
        for t in TASKS
        if t.main
        for m in t.metrics
        if m not in t.main
    ]
    found = _with_references(evaluation, columns)
    note = "In percent. T>I is text to image, I>M image to multimodal."
    head = ("System", *(x for _, _, x in columns))
    return Table("More metrics of these tasks", note, head, found) if found else None


def apart_tables(evaluation: Evaluation | None) -> list[Table]:
    """Tasks that the main table leaves out."""
    out = []
    for tasks in ([t for t in TASKS if not t.main and x in t.key] for x in ("image_to_", "clust")):
        columns = [(t.key, m, f"{t.title} {m}") for t in tasks for m in t.metrics]
        found = _with_references(evaluation, columns)
        note = "; ".join(f"{task.title}: {task.about}" for task in tasks) + ". In percent."
        title = ", ".join(task.title for task in tasks)
        if found:
            out.append(Table(title, note, ("System", *(x for _, _, x in columns)), found))
    return out


def definitions_table(evaluation: Evaluation | None) -> Table | None:
    """M5Product's own average precision and precision."""
    found = _by_row(rows_of(evaluation), DEFINITIONS)
    head = ("System", *(name for _, _, name in DEFINITIONS))
    note = (
        "As the dataset's authors compute them: lists are cut to the number of listings of the "
        "label, including the query, and precision is averaged over the found hits. In "
        "percent; comparable with M5Product's tables, not with the mAP above."
    )
    return Table("M5Product's definitions", note, head, found) if found else None


def macro_table(evaluation: Evaluation | None) -> Table | None:
    """Means over products or categories."""
    found = _by_row(rows_of(evaluation), MACRO, "macro")
    head = ("System", *(name for _, _, name in MACRO))
    note = (
        "Each product (fine-grained, and between text and image) or category (coarse, "
        "classification) counts once, however many listings it has. In percent."
    )
    return Table("Macro means", note, head, found) if found else None


def category_table(evaluation: Evaluation | None) -> Table | None:
    """The last row's values by category."""
    rows = rows_of(evaluation)
    found = (rows[-1].get("per_category") if rows else None) or {}
    keys = list(dict.fromkeys(k for values in found.values() for k in values if k != "queries"))
    if not keys:
        return None
    titles = {task.key: task.title for task in TASKS}
    named = [(key.split(".", 1), key) for key in keys]
    head = ("Category", "Queries", *(f"{titles.get(t, t)} {m}" for (t, m), _ in named))
    lines = [
        (name, _count(values.get("queries")), *(_text(values.get(key)) for key in keys))
        for name, values in found.items()
    ]
    return Table(f"By category: {rows[-1]['name']}", "In percent.", head, lines)


def scann_table(evaluation: Evaluation | None) -> Table | None:
    """Metrics of ScaNN's lists and of exact ones."""
    scann = (evaluation or {}).get("scann") or {}
    lines = []
    for task in TASKS:
        found = (scann.get("metrics") or {}).get(task.key) or {}
        recall = _text((scann.get("recalls") or {}).get(task.key))
        for metric in (m for m in task.metrics if m in found):
            exact, approximate = (number(found[metric].get(x)) for x in ("exact", "scann"))
            if exact is None or approximate is None:
                continue
            lines.append(
                (
                    f"{task.title} {metric}",
                    recall,
                    f"{exact:.2f}",
                    f"{approximate:.2f}",
                    f"{approximate - exact:+.2f}",
                )
            )
    head = ("Metric", f"Recall@{scann.get('k', 10)} of ScaNN", "Exact", "ScaNN", "Difference")
    note = "The last system, searched exactly and with ScaNN. In percent."
    return Table("Cost of approximate search", note, head, lines) if lines else None


def latency_table(evaluation: Evaluation | None) -> Table | None:
    """Milliseconds of encoding and searching."""
    found = (evaluation or {}).get("latency") or {}
    lines = [
        (
            name.format(batch=found.get("batch", "a batch")),
            _text(x.get("p50_ms")),
            _text(x.get("p95_ms")),
        )
        for key, name in LATENCY
        if (x := found.get(key))
    ]
    if not lines:
        return None
    where = found.get("machine") or {}
    note = (
        f"{found.get('system', 'The last system')}, {found.get('gallery', '?')} vectors; "
        f"{where.get('processor') or where.get('system', 'an unknown machine')}, "
        f"{where.get('cores', '?')} cores, {where.get('device', 'unknown device')}. Encoding "
        "includes decoding the picture, but not generating attributes."
    )
    return Table("Latency in milliseconds", note, ("Part", "Median", "95th percentile"), lines)


def detail_tables(evaluation: Evaluation | None) -> list[Table]:
    """All tables for which the evaluation has values."""
    makers = (
        metrics_table,
        definitions_table,
        macro_table,
        scann_table,
        latency_table,
        category_table,
    )
    found = [table for make in makers if (table := make(evaluation)) is not None]
    return apart_tables(evaluation) + found


def truncation_plots(evaluation: Evaluation | None) -> list[Drawn]:
    """Fine-grained recall of every row against the number of dimensions kept."""
    out = []
    for place, metric in enumerate(("R@1", "R@10")):
        curves = []
        for row in rows_of(evaluation):
            found = row.get("truncation") or {}
            points = zip(found.get("dims") or [], found.get(metric) or [], strict=False)
            lines = [{"step": size, metric: value} for size, value in points if size > 0]
            curves.append(Curve(str(row["name"]), lines, metric, points=True))
        plot = Plot(
            f"Shorter vectors: {metric}",
            f"{metric} in percent",
            curves,
            "Fine-grained retrieval with only the first dimensions, renormalized.",
            axis="dimension",
            doubling=True,
        )
        out.append(draw(plot, FIRST_PLOT + place))
    return [drawn for drawn in out if drawn is not None]
