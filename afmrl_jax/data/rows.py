"""Raw records of a catalogue, one after the other: JSON lines, Parquet, or a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.data.fields import REQUIRED
from afmrl_jax.data.records import Problem, Report, Row
from afmrl_jax.data.stored import MANIFEST, Store
from afmrl_jax.errors import CatalogueError
from afmrl_jax.files import is_local, place

FILES = ("listings.parquet", "listings.jsonl")


@dataclass(frozen=True)
class RowSource:
    """Where raw records come from; they can be read again and again, in the same order."""

    name: str
    file: str
    """What problems name."""
    folder: Path
    """Names of pictures start here."""
    read: Callable[[Report], Iterator[Row]]
    """Records that have the form of one; the others go to the report."""
    count: int | None = None
    """Records, where it is known."""
    store: Store | None = None
    trusted: bool = False
    """Whether pictures need no look."""

    @property
    def stamp(self) -> str:
        """Changes where the listings' file does."""
        path = place(self.file)
        if not path.is_file():
            return self.file
        about: Any = path.stat()
        if is_local(path):
            return f"{self.file} {about.st_size} {about.st_mtime_ns}"
        return f"{self.file} {about.length} {about.mtime}"


def open_rows(name_or_path: str | Path) -> RowSource:
    """The records of a catalogue.

    Args:
        name_or_path: `furniture`; a folder with listings.parquet, listings.jsonl or a store; or
            the file itself. Folders and files may lie in object storage, stores may not.

    Raises:
        CatalogueError: there is none.
    """
    if str(name_or_path) == "furniture":
        path = Path(str(files("afmrl_jax.data.furniture") / "listings.parquet"))
        return _table_source(path, "furniture", trusted=True)
    path = place(name_or_path)
    if (path / MANIFEST).is_file():
        store = Store.open(path)
        return RowSource(path.name, str(path), path, store.rows, len(store), store)
    path = find_listings(path)
    if path.suffix == ".parquet":
        return _table_source(path, path.parent.name)
    return RowSource(path.parent.name, str(path), path.parent, _json_reader(path))


def find_listings(path: Path) -> Path:
    """The listings file of a folder, or the file itself."""
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    what = "holds neither of " + " and ".join(FILES) if path.is_dir() else "does not exist"
    raise CatalogueError(f"catalogue {path} {what}; give `furniture` or a catalogue folder")


def _json_reader(path: Path) -> Callable[[Report], Iterator[Row]]:
    def read(report: Report) -> Iterator[Row]:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                line = data.decode(errors="replace")
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    what = f"not valid JSON ({error.msg} at column {error.colno})"
                    report(Problem(f"line {number}", str(path), what, "mend the line"))
                    continue
                if not isinstance(row, dict):
                    what = "not a JSON object"
                    report(Problem(f"line {number}", str(path), what, "write one object a line"))
                    continue
                yield f"line {number}", row

    return read


def _table_source(path: Path, name: str, *, trusted: bool = False) -> RowSource:
    @contextmanager
    def opened() -> Iterator[pq.ParquetFile]:
        with path.open("rb") as raw:
            try:
                file = pq.ParquetFile(raw)
            except (pa.ArrowInvalid, OSError) as error:
                raise CatalogueError(
                    f"{path} is not a Parquet file ({error}); write it again"
                ) from error
            yield file

    def read(report: Report) -> Iterator[Row]:
        number = 0
        with opened() as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row

    with opened() as file:
        missing = [x for x in REQUIRED if x not in file.schema_arrow.names]
        if missing:
            raise CatalogueError(f"{path} lacks the column {', '.join(missing)}; add it")
        count = file.metadata.num_rows
    return RowSource(name, str(path), path.parent, read, count, trusted=trusted)
