"""`report.html`: one file with everything a run found, readable without a network.

The page has no scripts or outside references; its content security policy makes the browser
enforce that, whatever a catalogue's texts may contain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from afmrl_jax.config.model import DEMO_WEIGHTS, RANDOM_WEIGHTS
from afmrl_jax.errors import RunError
from afmrl_jax.reporting import detail, findings, paper, plots, records, stages, tables
from afmrl_jax.reporting.curves import Curve
from afmrl_jax.reporting.gallery import read_changes, read_gallery, unreadable
from afmrl_jax.reporting.page import render
from afmrl_jax.runtime.files import write_text
from afmrl_jax.training.rar.monitor import raised
from afmrl_jax.training.rar.sample_log import read_samples
from afmrl_jax.types import JsonObject

PAGE_TITLE = "<title>AFMRL report: "
"""By which a page is known as a report."""


@dataclass(frozen=True)
class Tile:
    """A figure of the headline."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Forest:
    """A paired difference with its positions on a drawn scale, in percent of the scale's width."""

    found: tables.Difference
    low: float
    middle: float
    high: float
    zero: float


@dataclass(frozen=True)
class Rung:
    """A row of the ladder, with its R@1 on a drawn scale, in percent of the scale's width."""

    name: str
    recall: tables.Cell
    reciprocal: tables.Cell
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Step:
    """The differences between two rows of the table."""

    before: str
    after: str
    shown: list[Forest]
    others: list[tables.Difference]


def duration(seconds: float) -> str:
    """Seconds in readable form: `48 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def steps_of(evaluation: tables.Evaluation | None) -> list[Step]:
    """The paired differences by pair of rows, fine-grained ones with positions for drawing."""
    found = tables.differences(evaluation)
    fine = [x for x in found if x.task is tables.FINE]
    ends = [0.0, *(x.low for x in fine), *(x.high for x in fine)]
    start, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(3 + 94 * (value - start) / width, 2)

    out = []
    for before, after in dict.fromkeys((x.before, x.after) for x in found):
        own = [x for x in found if (x.before, x.after) == (before, after)]
        shown = [
            Forest(x, place(x.low), place(x.difference), place(x.high), place(0.0))
            for x in own
            if x in fine
        ]
        out.append(Step(before, after, shown, [x for x in own if x not in fine]))
    return out


def ladder(evaluation: tables.Evaluation | None) -> list[Rung]:
    """Fine-grained R@1 and MRR of every row that has them."""
    rows = tables.rows_of(evaluation)
    found = [(x["name"], *(tables.cell(x, "fine", m) for m in tables.HEADLINE)) for x in rows]
    known = [x for x in found if x[1].value is not None]
    bounds = [y for _, x, _ in known for y in (x.value, x.low, x.high) if y is not None]
    start, width = min(bounds, default=0.0), (max(bounds, default=0.0) - min(bounds, default=0.0))

    def place(value: float | None, otherwise: float) -> float:
        value = otherwise if value is None else value
        return round(3 + 94 * (value - start) / (width or 1.0), 2)

    return [
        Rung(name, x, mrr, *(place(y, x.value or 0.0) for y in (x.low, x.value, x.high)))
        for name, x, mrr in known
    ]


def _reward_tile(run: Path) -> Tile | None:
    lines = plots.read_stages(run).get("rar", [])
    rewards = Curve("", lines, "held_out/reward").values
    gains = Curve("", lines, "held_out/gain", 1.0).values
    if len(rewards) < 2:
        return None
    # The stage outputs the generator that was best by what chooses, mostly the held-out reward.
    best = max(range(len(rewards)), key=lambda n: rewards[n][1])
    kept = records.read_record(run / "rar" / "best" / "best.json", records.BestRecord)
    for number, (step, _, _) in enumerate(rewards):
        best = number if kept is not None and kept["step"] == step else best
    note = f"before RAR, and at its best after {int(rewards[best][0])} steps"
    if gains:
        _, gain, error = gains[best]
        note += f"; {gain:+.3f}, standard error {error:.3f}"
    return Tile("Held-out reward", f"{rewards[0][1]:.3f} → {rewards[best][1]:.3f}", note)


def headline(
    run: Path, evaluation: tables.Evaluation | None, chain: list[stages.Stage]
) -> list[Tile]:
    """The few figures at the top of the report."""
    tiles = []
    best = tables.best_baseline(evaluation)
    if best:
        tiles.append(Tile("R@1 without learning", f"{best[1]:.1f}", f"best: {best[0]}"))
    rows = tables.rows_of(evaluation)
    for row in rows if len(rows) < 2 else (rows[0], rows[-1]):
        found = tables.cell(row, "fine", "R@1")
        if found.value is not None:
            note = f"95 % interval {found.interval}" if found.interval else ""
            tiles.append(Tile(f"R@1, {row['name']}", f"{found.value:.1f}", note))
    tiles += [tile for tile in [_reward_tile(run)] if tile]
    seconds = [x.seconds for x in chain if x.seconds is not None]
    memory = (evaluation or {}).get("peak_memory_gb") or stages.read_timings(run).get(
        "peak_memory_gb"
    )
    if seconds:
        note = f"{memory} GB peak memory" if memory else "over all stages"
        tiles.append(Tile("Time", duration(sum(seconds)), note))
    return tiles


def _settings(config: JsonObject) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings by section, nested names joined by dots."""

    def flat(value: object, name: str) -> list[tuple[str, str]]:
        if isinstance(value, dict):
            inner = [flat(x, f"{name}.{key}" if name else key) for key, x in value.items()]
            return [pair for pairs in inner for pair in pairs]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return [(name, "off" if value is None else shown)]

    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = [("run", plain)] + [(k, v) for k, v in config.items() if isinstance(v, dict)]
    return [(name, flat(values, "")) for name, values in sections if values]


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} million parameters"


def _models(config: JsonObject) -> str:
    """Where the weights of the two models come from, in words."""
    given = [(config.get(x) or {}).get("weights") for x in ("embedder", "generator")]
    given = [None if x == RANDOM_WEIGHTS else x for x in given]
    if given == [DEMO_WEIGHTS] * 2:
        return "tiny models of the Qwen-VL architecture, pretrained on the drawn marketplace"
    if all(given):
        return "models of the Qwen-VL architecture, started from pretrained weights"
    if any(given):
        return "models of the Qwen-VL architecture, one of them started from pretrained weights"
    return (
        "tiny models of the Qwen-VL architecture, trained from random weights on this catalogue "
        "and nothing else"
    )


def _context(run: Path) -> dict[str, object]:
    evaluation = records.read_evaluation(run)
    config = records.read_settings(run)
    gallery = records.read_cards(run)
    chain = stages.read_stages(run, config)
    reinforcement, drawn = plots.stage_plots(run)
    recorded = plots.read_stages(run)
    trained = ("distill", "backbone", "infonce", "agcl", "agcl-distilled", "rar", "cit")
    expected = [x for x in stages.expected_stages(config) if x.split("-")[0] in trained]
    rows, measured = tables.rows_of(evaluation), tables.measured_tasks(evaluation)
    catalogue = (evaluation or {}).get("catalogue") or config.get("catalogue") or "unknown"
    return {
        "name": run.resolve().name,
        "catalogue": catalogue,
        "furniture": catalogue == "furniture",
        "embedder_size": _millions(stages.parameter_count(run, "infonce")),
        "generator_size": _millions(stages.parameter_count(run, "distill")),
        "findings": findings.findings_of(evaluation),
        "signs": findings.SIGNS,
        "tests": findings.tests_made(evaluation),
        "unlearned": findings.unlearned(evaluation),
        "ladder": ladder(evaluation),
        "keys": findings.key_shares(evaluation),
        "moved": findings.moved,
        "changes": ((evaluation or {}).get("lists") or {}).get("changes"),
        "changed": None if gallery is None else read_changes(gallery),
        "tiles": headline(run, evaluation, chain),
        "models": _models(config),
        "rows": rows,
        "tasks": [x for x in measured if x.main],
        "reference": partial(tables.reference, evaluation),
        "unmeasured": [x for x in tables.TASKS if x not in measured],
        "cell": tables.cell,
        "baselines": tables.baselines_of(evaluation),
        "scann": (evaluation or {}).get("scann"),
        "details": detail.detail_tables(evaluation),
        "shorter": [(plot, Markup(plot.svg)) for plot in detail.truncation_plots(evaluation)],
        "steps": steps_of(evaluation),
        "fine": tables.FINE,
        "second_table": [t for t in tables.TASKS if t.key in ("classification", "clustering")],
        "paper": paper,
        "headings": tables.HEADINGS,
        "plots": [(plot, Markup(plot.svg)) for plot in drawn],
        "rar_plots": [(plot, Markup(plot.svg)) for plot in reinforcement],
        "unreadable": unreadable,
        "without_curves": [x for x in expected if x not in recorded],
        "start": records.read_record(
            run / "rar" / "held_out_start" / "start.json", records.StartRecord
        ),
        "reported": records.read_record(run / "rar" / "report.json", records.ReportedRecord),
        "reinforced": "rar" in recorded,
        "alarms": raised(recorded.get("rar", [])),
        "samples": read_samples(run / "rar" / "samples.jsonl")[-3:],
        "gallery": None if gallery is None else read_gallery(gallery),
        "stages": chain,
        "settings": _settings(config),
        "duration": duration,
    }


def build_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run; each section says what is still missing.

    Args:
        run: the run directory.
        out: the file to write; `report.html` in the run by default.

    Returns:
        The path of the report.

    Raises:
        RunError: there is no such directory, or one of its files is broken.
    """
    run = Path(run)
    if not run.is_dir():
        raise RunError(f"there is no run directory {run}; give the --out of `afmrl train`")
    page = render("report.html.j2", _context(run))
    return write_text(out or run / "report.html", page)
