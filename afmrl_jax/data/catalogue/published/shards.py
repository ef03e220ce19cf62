"""Catalogues in many files with our own columns: JSON lines (.gz or not) and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from afmrl_jax.data.catalogue.published.reading import Layout, read_json_lines
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.schema import REQUIRED
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import open_regular

ENDS = (".jsonl", ".jsonl.gz", ".parquet")
BATCH = 256
"""Rows of a Parquet file in memory at a time: they may hold pictures."""


def inputs(folder: Path) -> list[Path]:
    """The files of a folder that hold listings."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(ENDS))


def rows(folder: Path, report: Report, *, files: Sequence[Path] | None = None) -> Iterator[Row]:
    """The rows of all files.

    Args:
        folder: names of pictures are relative to it.
        report: called with each broken record, and with files that cannot be read.
        files: of any folder; by default those of this one.
    """
    for file in inputs(folder) if files is None else files:
        if file.name.endswith(".parquet"):
            yield from _parquet_rows(file, report)
        else:
            for number, record in read_json_lines(file, report):
                yield f"{file.name}, line {number}", record


def count(path: Path) -> int | None:
    """Number of records in a file, if it says so."""
    if not path.name.endswith(".parquet"):
        return None
    try:
        with open_regular(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except Exception:  # What is wrong is said where the rows are read.
        return None


def _parquet_rows(path: Path, report: Report) -> Iterator[Row]:
    number, what, remedy = 0, "", "write it again"
    try:
        with open_regular(path, error=CatalogueError) as file:
            table = pq.ParquetFile(file)
            missing = [name for name in REQUIRED if name not in table.schema_arrow.names]
            if missing:
                what, remedy = f"the column {', '.join(missing)} is missing", "add it"
            for batch in table.iter_batches(batch_size=BATCH) if not missing else ():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}, row {number}", row
    except CatalogueError:
        raise
    # Of Arrow, of the system, and of Python's decoding: damage has many names.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"not a Parquet file, or a damaged one ({reason})"
        what += f", and the rows after row {number} are not read" if number else ""
    if what:
        report(Problem("file", str(path), what, remedy))


LAYOUT = Layout(
    name="shards",
    description="a catalogue of the user's own, in files of JSON lines or Parquet",
    citation="",
    download=f"give a folder with files that end in {', '.join(ENDS)}",
    inputs=inputs,
    rows=rows,
)
"""Not among the published layouts: it would match any catalogue folder."""
