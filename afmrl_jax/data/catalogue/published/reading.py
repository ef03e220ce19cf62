"""What the readers of published datasets share: layouts, texts, problems, splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.data.catalogue.records import SPLITS, Problem, Report, Row
from afmrl_jax.data.catalogue.splits import SPLIT_SHARES

NAMED = 20
"""How many unknown ids of a list are named one by one; the others are counted."""


@dataclass(frozen=True)
class Layout:
    """The form in which a dataset's authors publish it."""

    name: str
    description: str
    citation: str
    """Authors, title, year, and the page of the data."""
    download: str
    """What the user must do first, worded as a remedy, because errors end with it."""
    inputs: Callable[[Path], list[Path]]
    """The files of a folder that hold the listings, in order; none if it has another layout."""
    rows: Callable[..., Iterator[Row]]
    """`rows(folder, report, *, files=None, **options)`; `files` are some of the inputs."""

    def found(self, folder: Path) -> bool:
        """Whether a folder has this layout."""
        return folder.is_dir() and bool(self.inputs(folder))


def training_split(group: str) -> str:
    """The split of a group of the authors' training listings: distill, train or reward.

    A pure function of the name, so that it can be applied record by record. The shares are those of
    `SPLIT_SHARES` among the three, and hold on average.

    Args:
        group: the family or product that must stay in one split, as `Listing.group` names it.

    Example:
        >>> [training_split(f"product {n}") for n in range(4)]
        ['distill', 'distill', 'train', 'distill']
    """
    shares = SPLIT_SHARES[:3]
    digest = hashlib.sha256(group.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares)
    for split, share in zip(SPLITS, shares, strict=False):
        position -= share
        if position < 0:
            return split
    return SPLITS[2]


def text(value: object) -> str:
    """A text or number as text without surrounding space; empty for None and anything else."""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def lacks(values: Mapping[str, object]) -> str:
    """What is wrong with a record whose values must not be empty; "" if nothing is.

    Example:
        >>> lacks({"title": "Mug", "label": " "})
        "the column 'label' is missing or empty"
    """
    names = [repr(name) for name, value in values.items() if not text(value)]
    if not names:
        return ""
    return f"the column {', '.join(names)} is missing or empty"


def report_unknown(ids: Iterable[str], file: Path, where: str, report: Report) -> None:
    """Report the ids of a list that have no record.

    Args:
        ids: in the order to report; the first `NAMED` are named, the others counted.
        file: the list.
        where: the file that should have the records.
        report: called with the problems.
    """
    ids = list(ids)
    remedy = f"complete {where}, or remove the id from the list"
    for name in ids[:NAMED]:
        report(Problem(f"id {name!r}", str(file), f"{where} has no record of it", remedy))
    if len(ids) > NAMED:
        what = f"{where} has no record of {len(ids) - NAMED} more ids"
        report(Problem("list", str(file), what, remedy))
