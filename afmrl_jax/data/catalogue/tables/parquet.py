"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.data.catalogue.tables.batches import BATCH, columns_of, rows_of
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import open_regular

KIND = "a Parquet file"


def _names(path: Path) -> Sequence[str]:
    with open_regular(path, error=CatalogueError) as file:
        return list(pq.ParquetFile(file).schema_arrow.names)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open_regular(path, error=CatalogueError) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=BATCH)


def count(path: Path) -> int | None:
    """Number of rows, if the file can be read."""
    try:
        with open_regular(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except Exception:  # What is wrong is said where the rows are read.
        return None


FORMAT = TableFormat(
    "Parquet",
    (".parquet",),
    partial(columns_of, KIND, _names),
    partial(rows_of, KIND, _batches),
    count=count,
)
