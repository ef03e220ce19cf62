"""What the columnar formats share: batches of rows out of files that may be damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.errors import CatalogueError

BATCH = 256
"""Rows in memory at a time: they may hold pictures."""
AGAIN = "write it again"


def columns_of(kind: str, names: Callable[[Path], Sequence[str]], path: Path) -> Sequence[str]:
    """The columns of a file.

    Args:
        kind: of the file, with its article.
        names: reads them.
        path: the file.

    Raises:
        CatalogueError: the file cannot be read.
    """
    try:
        return names(path)
    except CatalogueError:
        raise
    # Of Arrow, of the system, and of Python's decoding: damage has many names.
    except Exception as error:
        raise CatalogueError(f"{_damage(kind, error)}; {AGAIN}") from error


def rows_of(
    kind: str, batches: Callable[[Path], Iterator[pa.RecordBatch]], path: Path, report: Report
) -> Iterator[Row]:
    """The rows of a file, a few at a time; damage is reported, and reading stops there.

    Args:
        kind: of the file, with its article.
        batches: reads them, at most `BATCH` rows each.
        path: the file.
        report: called with the damage.

    Raises:
        CatalogueError: the file cannot be opened.
    """
    number = 0
    try:
        for batch in batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", row
    except CatalogueError:
        raise
    except Exception as error:
        what = _damage(kind, error)
        what += f", and the rows after row {number} are not read" if number else ""
        report(Problem("file", str(path), what, AGAIN))


def _damage(kind: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"not {kind}, or a damaged one ({reason})"
