"""Tabular files of the user's own: a listing a row, in columns of any names.

A format is a module with a `TableFormat`, and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.schema import IMAGES, REQUIRED
from afmrl_jax.data.catalogue.tables import arrow, delimited, json_lines, parquet
from afmrl_jax.data.catalogue.tables.columns import listed, renamed, require_columns
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.errors import CatalogueError

FORMATS: tuple[TableFormat, ...] = (
    parquet.FORMAT,
    json_lines.FORMAT,
    delimited.CSV,
    delimited.TSV,
    arrow.FORMAT,
)
ENDS = tuple(end for form in FORMATS for end in form.ends)


def format_of(path: Path) -> TableFormat | None:
    """The format of a file by the end of its name; None if it has none."""
    return next((form for form in FORMATS if path.name.lower().endswith(form.ends)), None)


def count(files: Sequence[Path]) -> int | None:
    """Number of rows, if all files say so."""
    counts = [(format_of(file) or json_lines.FORMAT).count(file) for file in files]
    return None if None in counts else sum(x for x in counts if x is not None)


def rows(
    files: Sequence[Path], report: Report, columns: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """The rows of some files, under the names of a listing's columns.

    Args:
        files: of any format; one whose name does not tell is read as JSON lines.
        report: called with each broken record, and with files that cannot be used.
        columns: by our names, those of the files, where they differ.

    Raises:
        ConfigError: a file lacks a column of `columns`.
    """
    columns = columns or {}
    for file in files:
        form = format_of(file) or json_lines.FORMAT
        try:
            there = form.columns(file) if form.fixed or columns else []
        except CatalogueError as error:
            what, _, remedy = str(error).rpartition("; ")
            report(Problem("file", str(file), what, remedy))
            continue
        require_columns(columns, there, file)
        known = {*columns, *there}
        if IMAGES in known:
            known.add("image")
        missing = [x for x in REQUIRED if x not in known] if form.fixed else ()
        if missing:
            what = f"the column {', '.join(missing)} is missing; it has {listed(there)}"
            remedy = f"add it, or say which one it is: --columns {missing[0]}=NAME"
            report(Problem("file", str(file), what, remedy))
            continue
        for where, row in form.rows(file, report):
            yield where, renamed(row, columns)
