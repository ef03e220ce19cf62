"""The files of a run that its report shows, checked before anything of them is drawn.

Of each file only what is shown is described, and what older runs lack may be missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from afmrl_jax.config.rar import MAX_CYCLES
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.json_files import checked, read_json
from afmrl_jax.types import JsonObject

REMEDY = "mend it, or delete it and start the command that wrote it again"

Number = float | None
"""A value that may be missing; NaN counts as missing too."""
Numbers = dict[str, Number] | None
Bounds = tuple[Number, Number] | None

ComparedRows = TypedDict(
    "ComparedRows", {"from": str, "to": str, "metrics": dict[str, Numbers] | None}
)


class _Truncation(TypedDict, total=False):
    dims: list[int] | None


_Curves = TypedDict(
    "_Curves", {"R@1": list[Number] | None, "R@10": list[Number] | None}, total=False
)


class TruncationRecord(_Truncation, _Curves, total=False):
    """Recall by the number of dimensions kept."""


class _Named(TypedDict):
    name: str


class RowRecord(_Named, total=False):
    """A row of the results."""

    fine: Numbers
    coarse: Numbers
    text_to_image: Numbers
    image_to_multimodal: Numbers
    image_to_image: Numbers
    classification: Numbers
    clustering: Numbers
    clustering_type: Numbers
    clustering_family: Numbers
    chance: dict[str, Numbers] | None
    macro: dict[str, Numbers] | None
    intervals: dict[str, dict[str, Bounds] | None] | None
    per_category: dict[str, dict[str, Number]] | None
    truncation: TruncationRecord | None
    n_queries: int | None
    n_gallery: int | None


class ScannRecord(TypedDict, total=False):
    """Approximate search beside exact search."""

    k: int
    recall: Number
    recalls: Numbers
    metrics: dict[str, dict[str, dict[str, Number]] | None] | None
    reason: str | None


class MachineRecord(TypedDict, total=False):
    """Where latency was measured."""

    system: str | None
    processor: str | None
    cores: int | None
    device: str | None


class LatencyRecord(TypedDict, total=False):
    """Milliseconds of the parts of a search."""

    system: str
    gallery: int
    batch: int
    machine: MachineRecord | None
    encode_one: Numbers
    encode_batch: Numbers
    search_exact_one: Numbers
    search_exact_batch: Numbers
    search_scann_one: Numbers
    search_scann_batch: Numbers


class _Tested(TypedDict):
    step: str
    to: str
    task: str
    metric: str


# `from` is no name of Python's, so this part is given as a call.
_From = TypedDict("_From", {"from": str})


class PrimaryRecord(_Tested, _From, total=False):
    """One of the primary tests."""

    about: str | None
    before: Number
    after: Number
    difference: Number
    low: Number
    high: Number
    p_holm: Number


class KeysRecord(TypedDict, total=False):
    """Share of the lists with each key, by the generator before and after RAR."""

    before: Numbers
    after: Numbers


class ChangesRecord(TypedDict):
    """How many first hits the lists changed."""

    system: str
    queries: int
    gained: int
    lost: int


class ListsRecord(TypedDict, total=False):
    """What the lists say and do."""

    keys: KeysRecord | None
    changes: ChangesRecord | None


class EvaluationRecord(TypedDict, total=False):
    """`evaluation.json`."""

    catalogue: str | None
    listings: int | None
    chance: dict[str, Numbers] | None
    ideal: dict[str, Numbers] | None
    primary: list[PrimaryRecord] | None
    lists: ListsRecord | None
    rows: list[RowRecord] | None
    comparisons: list[ComparedRows] | None
    baselines: dict[str, Numbers] | None
    scann: ScannRecord | None
    latency: LatencyRecord | None
    peak_memory_gb: Number


class _Listing(TypedDict):
    title: str
    listing_id: str


class ListingRecord(_Listing, total=False):
    """A listing of a gallery."""

    image: str | None


class HitRecord(ListingRecord):
    """A listing that was found."""

    score: float
    correct: bool


class ReadRecord(ListingRecord, total=False):
    """A listing with the list that the embedder read."""

    attributes: str | None


class ChangedRecord(TypedDict):
    """What a query finds with the lists and without them."""

    gained: bool
    right: ReadRecord
    wrong: ReadRecord
    attributes: str | None
    effects: Numbers


class _Card(TypedDict):
    query: ListingRecord
    results: list[HitRecord]


class CardRecord(_Card, total=False):
    """A query of `gallery.json`."""

    attributes_before: str | None
    attributes_after: str | None
    true_attributes: str | None
    changed: ChangedRecord | None


class _Steps(TypedDict, total=False):
    steps: int


class _Cycles(TypedDict, total=False):
    cycles: int
    rar_between: bool


class _Weights(TypedDict, total=False):
    weights: str | None


class ConfigRecord(TypedDict, total=False):
    """What the report itself needs of `config.json`."""

    catalogue: str
    controls: bool
    embedder: _Weights
    generator: _Weights
    backbone: _Steps
    cit: _Cycles


class ReportedFigure(TypedDict):
    """A mean over queries before and after RAR."""

    before: Number
    after: Number
    gain: Number
    gain_error: Number


class ReportedRecord(TypedDict):
    """`report.json` of reinforcement."""

    k: int
    queries: int
    families: int
    reward: ReportedFigure
    recall: ReportedFigure
    reciprocal_rank: ReportedFigure


class BestRecord(TypedDict):
    """`best.json` of reinforcement."""

    step: int
    reward: Number


class StartRecord(TypedDict):
    """`start.json` of reinforcement."""

    k: int
    recall_at: dict[str, float]


def read_record(path: Path, kind: object) -> Any:
    """A file of a run as it is, once it has been checked; None where there is none.

    Args:
        path: of the file.
        kind: what it should be: one of the types here, or a list or a dictionary of them.

    Raises:
        RunError: it is broken; the message names the file, the field, and the remedy.
    """
    if not path.is_file():
        return None
    found = read_json(path, remedy=REMEDY, nan=True)
    checked(kind, found, path, remedy=REMEDY, nan=True)  # type: ignore[arg-type]
    return found


def read_evaluation(run: Path) -> JsonObject | None:
    """`evaluation.json` of a run."""
    found: JsonObject | None = read_record(run / "evaluation.json", EvaluationRecord)
    return found


def read_cards(run: Path) -> list[JsonObject] | None:
    """`gallery.json` of a run."""
    found: list[JsonObject] | None = read_record(run / "gallery.json", list[CardRecord])
    return found


def read_settings(run: Path) -> JsonObject:
    """`config.json` of a run; an empty one means the defaults."""
    path = run / "config.json"
    found: JsonObject = read_record(path, ConfigRecord) or {}
    cycles = found.get("cit", {}).get("cycles", 0)
    if cycles > MAX_CYCLES:
        raise RunError(f"{path}: cit.cycles must be {MAX_CYCLES} at most, found {cycles}; {REMEDY}")
    return found
