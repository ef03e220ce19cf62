"""JSON lines, compressed or not: one object a line, whose keys may differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from afmrl_jax.data.catalogue.lines import read_json_lines
from afmrl_jax.data.catalogue.records import Report, Row
from afmrl_jax.data.catalogue.tables.format import TableFormat

LOOKED_AT = 100
"""Lines whose keys are taken for the columns of the file."""


def columns(path: Path) -> Sequence[str]:
    """The keys of the first lines, in the order in which they occur."""
    lines = islice(read_json_lines(path, lambda _: None), LOOKED_AT)
    return list(dict.fromkeys(key for _, record in lines for key in record))


def rows(path: Path, report: Report) -> Iterator[Row]:
    """The objects of a file."""
    for number, record in read_json_lines(path, report):
        yield f"{path.name}, line {number}", record


FORMAT = TableFormat("JSON lines", (".jsonl", ".jsonl.gz"), columns, rows, fixed=False)
