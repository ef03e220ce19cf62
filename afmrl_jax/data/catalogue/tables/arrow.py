"""Arrow files, of streams (as Hugging Face's `datasets` saves them) or with a table of contents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.data.catalogue.tables.parquet import AGAIN, BATCH, damage
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import is_local
from afmrl_jax.runtime.json_files import open_regular

WITH_CONTENTS = b"ARROW1"


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    """Schema and batches of a file, which is mapped if it is on this machine."""
    with open_regular(path, error=CatalogueError) as file:
        contents = file.read(len(WITH_CONTENTS)) == WITH_CONTENTS
        file.seek(0)
        source = pa.memory_map(str(path)) if is_local(path) else pa.PythonFile(file, "r")
        with source:
            yield pa.ipc.open_file(source) if contents else pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        yield from reader


def columns(path: Path) -> Sequence[str]:
    """The names in the schema.

    Raises:
        CatalogueError: the file cannot be read.
    """
    try:
        with _reader(path) as reader:
            return list(reader.schema.names)
    except CatalogueError:
        raise
    except Exception as error:  # Of Arrow, of the system, or of Python's decoding.
        raise CatalogueError(f"{damage('an Arrow file', error)}; {AGAIN}") from error


def rows(path: Path, report: Report) -> Iterator[Row]:
    """The rows of a file, a few at a time."""
    number = 0
    try:
        with _reader(path) as reader:
            for batch in _batches(reader):
                # Arrow believes a file: without this, offsets that are wrong read any memory.
                batch.validate(full=True)
                for begin in range(0, batch.num_rows, BATCH):
                    for row in batch.slice(begin, BATCH).to_pylist():
                        number += 1
                        yield f"{path.name}, row {number}", row
    except CatalogueError:
        raise
    except Exception as error:
        what = damage("an Arrow file", error)
        what += f", and the rows after row {number} are not read" if number else ""
        report(Problem("file", str(path), what, AGAIN))


FORMAT = TableFormat("Arrow", (".arrow",), columns, rows)
