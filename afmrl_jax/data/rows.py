"""Raw records of a catalogue one by one: JSON lines, Parquet, a store, a published layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from afmrl_jax.data.examples import PART, from_example
from afmrl_jax.data.published import LAYOUTS, layout_of, shards
from afmrl_jax.data.records import Report, Row
from afmrl_jax.data.stored import MANIFEST, Store
from afmrl_jax.errors import CatalogueError
from afmrl_jax.files import is_local, place

FILES = ("listings.parquet", "listings.jsonl", "listings.jsonl.gz")


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


def open_rows(name_or_path: str | Path, options: Mapping[str, Any] | None = None) -> RowSource:
    """The records of a catalogue.

    Args:
        name_or_path: `furniture`; a folder with listings.parquet, listings.jsonl or a store, one
            that a TFDS builder of ours has written, or one in a published layout; or the listings'
            file itself. Folders and files may lie in object storage, stores may not.
        options: of a published layout's `rows`.

    Raises:
        CatalogueError: there is none.
    """
    if str(name_or_path) == "furniture":
        path = Path(str(files("afmrl_jax.data.furniture") / "listings.parquet"))
        return _own(path, "furniture", trusted=True)
    path = place(name_or_path)
    if (path / MANIFEST).is_file():
        store = Store.open(path)
        return RowSource(path.name, str(path), path, store.rows, len(store), store)
    if (path / "dataset_info.json").is_file():
        return _prepared(path)
    layout = layout_of(path) if not any((path / x).is_file() for x in FILES) else None
    if layout is not None:
        chosen = partial(layout.rows, path, **options or {})
        return RowSource(path.name, str(path), path, chosen)
    path = find_listings(path)
    return _own(path, path.parent.name)


def find_listings(path: Path) -> Path:
    """The listings file of a folder, or the file itself."""
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    what = "does not exist"
    if path.is_dir():
        what = f"holds neither {', '.join(FILES)} nor a store, nor has it a published layout "
        what += f"({', '.join(LAYOUTS)})"
    raise CatalogueError(f"catalogue {path} {what}; give `furniture` or a catalogue folder")


def _own(path: Path, name: str, *, trusted: bool = False) -> RowSource:
    """A listings file of our own columns."""
    read = partial(shards.rows, path.parent, files=[path])
    return RowSource(name, str(path), path.parent, read, shards.count(path), trusted=trusted)


def _prepared(path: Path) -> RowSource:
    """What a TFDS builder has written; only ours have our columns."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    missing = {"listing_id", "image"} - set(builder.info.features or ())
    if missing or PART not in builder.info.splits:
        raise CatalogueError(
            f"{path} is a TFDS dataset of other columns; write it with a builder of "
            "afmrl_jax.data.published.builders"
        )
    source = builder.as_data_source(split=PART)

    def read(report: Report) -> Iterator[Row]:
        for number in range(len(source)):
            yield f"example {number}", from_example(source[number])

    return RowSource(path.name, str(path), path, read, len(source))
