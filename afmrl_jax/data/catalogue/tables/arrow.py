"""Arrow files, of streams (as Hugging Face's `datasets` saves them) or with a table of contents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from afmrl_jax.data.catalogue.tables.batches import BATCH, columns_of, rows_of
from afmrl_jax.data.catalogue.tables.format import TableFormat
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import is_local
from afmrl_jax.runtime.json_files import open_regular

KIND = "an Arrow file"
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


def _names(path: Path) -> Sequence[str]:
    with _reader(path) as reader:
        return list(reader.schema.names)


def _stored(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        yield from reader


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with _reader(path) as reader:
        for batch in _stored(reader):
            # Arrow believes a file: without this, offsets that are wrong read any memory.
            batch.validate(full=True)
            yield from (batch.slice(begin, BATCH) for begin in range(0, batch.num_rows, BATCH))


FORMAT = TableFormat(
    "Arrow", (".arrow",), partial(columns_of, KIND, _names), partial(rows_of, KIND, _batches)
)
