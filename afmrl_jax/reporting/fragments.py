"""Parts of the report as self-contained HTML, for notebooks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from afmrl_jax.errors import RunError
from afmrl_jax.reporting import plots, records, stages, tables
from afmrl_jax.reporting.gallery import Attributes, compare_attributes, read_gallery, thumbnail
from afmrl_jax.reporting.page import render
from afmrl_jax.reporting.report import duration
from afmrl_jax.types import JsonObject

T = TypeVar("T")
SHOWN_TASKS = ("fine", "coarse", "image_to_multimodal")
"""Tasks of the table that fit the width of a notebook."""


@dataclass(frozen=True)
class Match:
    """A listing that a search found."""

    title: str
    listing_id: str
    picture: str | None
    score: float
    attributes: Attributes


def _fragment(part: str, **context: object) -> str:
    return render("fragment.html.j2", {"part": part, **context})


def status(run: Path, seconds: float, last: str = "", *, running: bool = True) -> str:
    """The stages of a run, and which of them is running.

    Args:
        run: the run directory.
        seconds: since the work began.
        last: last line of its output.
        running: whether it is still running.
    """
    chain = stages.read_stages(run, records.read_settings(run))
    return _fragment(
        "status", stages=chain, seconds=seconds, last=last, running=running, duration=duration
    )


def curves(run: Path) -> str:
    """The main curves that the stages of a run have written so far."""
    drawn = [(plot, Markup(plot.svg)) for plot in plots.main_plots(run)]
    return _fragment("curves", plots=drawn)


def _present(found: T | None, path: Path) -> T:
    if found is None:
        raise RunError(f"{path} is missing: let the run finish first, then show its results")
    return found


def results(run: Path) -> str:
    """The table of a finished run, by the tasks that fit a notebook.

    Raises:
        RunError: the run is not evaluated yet.
    """
    evaluation = _present(records.read_evaluation(run), run / "evaluation.json")
    return _fragment(
        "results",
        rows=tables.rows_of(evaluation),
        tasks=[x for x in tables.measured_tasks(evaluation) if x.key in SHOWN_TASKS],
        baselines=tables.baselines_of(evaluation),
        cell=tables.cell,
        reference=partial(tables.reference, evaluation),
    )


def gallery(run: Path, count: int) -> str:
    """The first queries of a finished run with their attributes, and what they found.

    Args:
        run: the run directory.
        count: how many queries.

    Raises:
        RunError: the run is not evaluated yet.
    """
    cards = _present(records.read_cards(run), run / "gallery.json")
    return _fragment("gallery", queries=read_gallery(cards)[:count])


def found(
    photo: bytes,
    words: str | None,
    attributes: str,
    hits: Sequence[JsonObject],
    pictures: Mapping[str, bytes],
) -> str:
    """The user's query and what it found.

    Args:
        photo: the encoded picture.
        words: the text that was searched with it.
        attributes: what the generator read off the two.
        hits: best first, each with `listing_id`, `title`, `score`, and perhaps `attributes`, as
            `afmrl search --as-json` prints them.
        pictures: encoded picture by listing id.
    """

    def small(data: bytes | None) -> str | None:
        return thumbnail(None if data is None else base64.b64encode(data).decode())

    def parts(text: str) -> Attributes:
        return compare_attributes(text, text)[0]

    matches = [
        Match(
            title=x["title"],
            listing_id=x["listing_id"],
            picture=small(pictures.get(x["listing_id"])),
            score=float(x["score"]),
            attributes=parts(x.get("attributes") or ""),
        )
        for x in hits
    ]
    return _fragment(
        "found", picture=small(photo), words=words, attributes=parts(attributes), hits=matches
    )
