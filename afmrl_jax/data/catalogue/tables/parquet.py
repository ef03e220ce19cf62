"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import open_regular

BATCH = 256
"""Rows in memory at a time: they may hold pictures."""
AGAIN = "write it again"


def damage(kind: str, error: Exception) -> str:
    """What is wrong with a file that Arrow cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"not {kind}, or a damaged one ({reason})"


def columns(path: Path) -> Sequence[str]:
    """The names in the schema.

    Raises:
        CatalogueError: the file cannot be read.
    """
    try:
        with open_regular(path, error=CatalogueError) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)
    except CatalogueError:
        raise
    # Of Arrow, of the system, and of Python's decoding: damage has many names.
    except Exception as error:
        raise CatalogueError(f"{damage('a Parquet file', error)}; {AGAIN}") from error


def rows(path: Path, report: Report) -> Iterator[Row]:
    """The rows of a file, a few at a time."""
    number = 0
    try:
        with open_regular(path, error=CatalogueError) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", row
    except CatalogueError:
        raise
    except Exception as error:
        what = damage("a Parquet file", error)
        what += f", and the rows after row {number} are not read" if number else ""
        report(Problem("file", str(path), what, AGAIN))


def count(path: Path) -> int | None:
    """Number of rows, if the file can be read."""
    try:
        with open_regular(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except Exception:  # What is wrong is said where the rows are read.
        return None


FORMAT = TableFormat("Parquet", (".parquet",), columns, rows, count=count)
