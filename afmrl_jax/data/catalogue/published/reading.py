"""What the readers of published datasets share: rows, problems, lines, splits."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from afmrl_jax.data.catalogue.records import SPLITS, Problem, Report, Row
from afmrl_jax.data.catalogue.splits import SPLIT_SHARES
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import MAX_LINE, open_regular, parse_json
from afmrl_jax.types import JsonObject

DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
LONGEST_SKIPPED = 1 << 30
"""Bytes of a line that are read to find its end, unpacked: a bomb is given up before that."""
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


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file for reading, decompressed if its name ends in .gz; the path may be remote.

    Raises:
        CatalogueError: the file cannot be read, or is a pipe or a device.
    """
    try:
        with open_regular(path, error=CatalogueError) as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file
    except DAMAGED:
        raise
    except OSError as error:
        raise CatalogueError(
            f"{path} cannot be read ({error.strerror or error}); put the file there again"
        ) from error


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1 and without line ends.

    Reports lines that are not UTF-8 or too long, and damage in an archive, after which reading
    stops. Memory is bounded whatever the file unpacks to.

    Raises:
        CatalogueError: the file cannot be opened.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    what, remedy = f"longer than {MAX_LINE:,} bytes", "split or remove the line"
                    ended = raw.endswith(b"\n") or _skip_line(file)
                    what += "" if ended else ", and the rest of the file is not read"
                    report(Problem(f"line {number}", str(path), what, remedy))
                    if not ended:
                        return
                    continue
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    what = f"not UTF-8 (byte {error.start})"
                    report(Problem(f"line {number}", str(path), what, "fix or remove the line"))
                    continue
                if line.strip():
                    yield number, line
    except DAMAGED as error:
        what = f"the compressed file is damaged ({error})"
        report(Problem(f"line {number + 1}", str(path), what, "download the file again"))


def _skip_line(file: IO[bytes]) -> bool:
    """Read to the end of a line; False if that is too far."""
    for _ in range(LONGEST_SKIPPED // MAX_LINE):
        rest = file.readline(MAX_LINE)
        if not rest or rest.endswith(b"\n"):
            return True
    return False


def read_json_lines(path: Path, report: Report) -> Iterator[tuple[int, JsonObject]]:
    """The JSON objects of a file with one per line, with line numbers; other lines are reported."""
    for number, line in read_lines(path, report):
        try:
            value = parse_json(line, "the line", error=CatalogueError)
        except CatalogueError as error:
            what = str(error).removeprefix("the line is ")
            report(Problem(f"line {number}", str(path), what, "fix or remove the line"))
            continue
        if not isinstance(value, dict):
            what = "not a JSON object"
            report(Problem(f"line {number}", str(path), what, "write one object per line"))
            continue
        yield number, value


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
