"""CSV and TSV, compressed or not, in UTF-8, with a first line that names the columns.

The separator of a CSV is the one of comma, semicolon, tab and bar that divides its first line into
most columns; a line `sep=;` before it, as Excel writes it, decides. Quotes are those of RFC 4180.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

from afmrl_jax.data.catalogue.lines import DAMAGED, open_bytes, skip_line
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import MAX_LINE
from afmrl_jax.runtime.terminal import printable

COMMA, TAB = ",;\t|", "\t"
"""What may separate the cells of a CSV and of a TSV."""
UTF_8 = "save the file as UTF-8 (in Excel: CSV UTF-8)"
LINE = "fix or remove the line"


class _TooLongError(Exception):
    """A record that is longer than `MAX_LINE`."""


class _Lines:
    """Lines of a file as text, with their ends; bytes that are not UTF-8 become surrogates.

    Args:
        file: opened for reading bytes.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.number = 0
        """Lines given so far."""
        self.taken = 0
        """Bytes of the record so far; the reader of records sets it back."""
        self.ended = False
        """Whether the rest of the file is given up."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = b"" if self.ended else self._file.readline(MAX_LINE + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self.taken += len(raw)
        if self.taken > MAX_LINE:
            self.ended = not raw.endswith(b"\n") and not skip_line(self._file)
            raise _TooLongError
        if self.number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise CatalogueError(f"it is in UTF-16; {UTF_8}")
        return raw.decode("utf-8-sig" if self.number == 1 else "utf-8", "surrogateescape")


def _strange(cells: Sequence[str]) -> str:
    """What is wrong with cells that are not UTF-8; "" if they are."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        return f"not UTF-8 (byte 0x{byte:02X})"
    return ""


def _separator(line: str, signs: str) -> str:
    """The sign that divides a line into most cells, the first of those that tie."""
    counts = [len(next(csv.reader([line], delimiter=sign), [])) for sign in signs]
    return signs[counts.index(max(counts))]


def _header(lines: _Lines, signs: str) -> tuple[list[str], str]:
    """The names of the columns, and what separates them.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    try:
        first = next(lines, "")
        if first[:4].lower() == "sep=" and first[4:5]:
            signs, first = first[4], next(lines, "")
        sign = _separator(first, signs)
        names = [x.strip() for x in next(csv.reader(chain([first], lines), delimiter=sign), [])]
    except (csv.Error, ValueError, _TooLongError) as error:
        reason = str(error) or "it is too long"
        raise CatalogueError(
            f"the line with the names of the columns cannot be read ({reason}); correct it"
        ) from error
    if not any(names):
        raise CatalogueError("it has no line with the names of the columns; put one first")
    if wrong := _strange(names):
        raise CatalogueError(f"the names of the columns are {wrong}; {UTF_8}")
    twice = next((x for n, x in enumerate(names) if x and x in names[:n]), None)
    if twice is not None:
        raise CatalogueError(f"the column {printable(twice)!r} is there twice; rename one")
    return names, sign


def columns(path: Path, *, signs: str) -> Sequence[str]:
    """The names in the first line; nameless columns are left out.

    Raises:
        CatalogueError: the file cannot be read, or has no such line.
    """
    try:
        with open_bytes(path) as file:
            return [x for x in _header(_Lines(file), signs)[0] if x]
    except DAMAGED as error:
        raise CatalogueError(
            f"the compressed file is damaged ({error}); download the file again"
        ) from error


def rows(path: Path, report: Report, *, signs: str) -> Iterator[Row]:
    """The rows of a file; those without a text in any cell are left out."""
    first = 1

    def broken(what: str, remedy: str = LINE) -> None:
        to = f" to {lines.number}" if lines.number > first else ""
        report(Problem(f"line {first}{to}", str(path), what, remedy))

    try:
        with open_bytes(path) as file:
            lines = _Lines(file)
            names, sign = _header(lines, signs)
            reader = csv.reader(lines, delimiter=sign, strict=True)
            while True:
                first, lines.taken = lines.number + 1, 0
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except _TooLongError:
                    rest = ", and the rest of the file is not read" if lines.ended else ""
                    broken(f"longer than {MAX_LINE:,} bytes{rest}", "close its quotes, or split it")
                    continue
                except csv.Error as error:
                    broken(*_explained(error))
                    continue
                if not any(x.strip() for x in cells):
                    continue
                if wrong := _strange(cells):
                    broken(wrong, UTF_8)
                elif len(cells) < len(names) or any(cells[len(names) :]):
                    what = f"it has {len(cells)} cells, but the first line has {len(names)}"
                    broken(what, f"quote texts that have a {_called(sign)}, or add what is missing")
                else:
                    row = {x: cell for x, cell in zip(names, cells, strict=False) if x}
                    yield f"{path.name}, line {first}", row
    except DAMAGED as error:
        what = f"the compressed file is damaged ({error})"
        report(Problem(f"line {first}", str(path), what, "download the file again"))


def _called(sign: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(sign, repr(sign))


def _explained(error: csv.Error) -> tuple[str, str]:
    """What is wrong with a record that is no CSV, and the remedy."""
    reason = str(error)
    if "field limit" in reason:
        what = f"a cell is longer than {csv.field_size_limit():,} letters"
        return what, "close its quotes, or shorten it"
    if "unexpected end" in reason:
        return "a quote is opened and not closed", "close it, or double quotes inside a text"
    if "new-line" in reason:
        return "it has line ends of an old Mac", "save the file with line ends of Unix or Windows"
    return f"it is not CSV ({reason})", "double the quotes inside a quoted text"


CSV = TableFormat(
    "CSV", (".csv", ".csv.gz"), partial(columns, signs=COMMA), partial(rows, signs=COMMA)
)
TSV = TableFormat("TSV", (".tsv", ".tsv.gz"), partial(columns, signs=TAB), partial(rows, signs=TAB))
