"""What is said of a format of tabular files: the names of its columns, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.data.catalogue.records import Report, Row


@dataclass(frozen=True)
class TableFormat:
    """A format of files with one listing a row."""

    name: str
    ends: tuple[str, ...]
    """Of the names of such files."""
    columns: Callable[[Path], Sequence[str]]
    """The columns of a file, as far as it says; raises `CatalogueError` if it cannot be read."""
    rows: Callable[[Path, Report], Iterator[Row]]
    """The rows of a file in its own columns; broken ones, and damage, are reported."""
    fixed: bool = True
    """Whether each row has all the columns."""
    count: Callable[[Path], int | None] = lambda _: None
    """Number of rows, if the file says so."""
