"""A catalogue as a store: ArrayRecord shards that TFDS and Grain read, and columns next to them.

manifest.json                                    the contents, and the hash of every shard
catalogue-listings.array_record-00000-of-00004   whole listings with their pictures, in order
columns-00000-of-00004.arrow                     the same without pictures, to be memory-mapped
dataset_info.json, features.json                 for `tfds.builder_from_directory`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from afmrl_jax.data.catalogue.manifest import AGAIN, MANIFEST, Manifest, columns_name
from afmrl_jax.data.catalogue.records import SPLITS, Listing, Problem, Report, Row, StoredListings
from afmrl_jax.data.catalogue.schema import IMAGES, REQUIRED
from afmrl_jax.data.catalogue.splits import draw_splits
from afmrl_jax.data.catalogue.tfds_examples import (
    ADDED,
    COLUMNS,
    MORE,
    PICTURES,
    TEXTS,
    parse,
    to_bytes,
    to_columns,
    to_example,
)
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import is_local
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.types import JsonObject, Plain

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

READ_AHEAD = 64


@dataclass(frozen=True)
class Store:
    """A folder that `afmrl catalogue-convert` wrote."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The store of a folder.

        Raises:
            CatalogueError: it is in object storage, has another version, or one of its files is
                missing or truncated.
        """
        if not is_local(folder):
            raise CatalogueError(
                f"{folder} is a store in object storage, but stores are mapped into memory; "
                "copy the folder to this machine"
            )
        return cls(folder, Manifest.read(folder))

    def __len__(self) -> int:
        return self.manifest.listings

    @property
    def fingerprint(self) -> str:
        """A hash of all shards and columns."""
        return self.manifest.fingerprint

    def verify(self) -> Iterator[Problem]:
        """A problem for each file whose bytes are not those that were written."""
        return self.manifest.damage(self.folder)

    def rows(self, report: Report) -> Iterator[Row]:
        """All records with their pictures, in order; those that cannot be read are reported."""
        records = _records(str(self.folder))
        for begin in range(0, len(self), READ_AHEAD):
            chosen = list(range(begin, min(begin + READ_AHEAD, len(self))))
            try:
                found = records.__getitems__(chosen)
            except Exception:  # One of them is damaged; which one is found below.
                found = [None] * len(chosen)
            for number, data in zip(chosen, found, strict=True):
                where = f"record {number}"
                try:
                    row = parse(_record(str(self.folder), number) if data is None else data)
                except CatalogueError as error:
                    what, _, remedy = str(error).rpartition("; ")
                    report(Problem(where, str(self.folder), what, remedy))
                    continue
                yield where, row

    def listings(self) -> StoreListings:
        """The listings, each with a split: their own, or one drawn by family if they have none.

        Raises:
            CatalogueError: the columns are not those that were written.
        """
        for about in self.manifest.columns():
            if not about.is_intact(self.folder):
                raise CatalogueError(f"{self.folder / about.file} was changed; {AGAIN}")
        table = _columns(str(self.folder), self.fingerprint)
        names = table.column("split").to_pylist()
        kinds = set(names)
        if kinds == {""}:
            families, products, duplicates = (
                table.column(x).to_pylist() for x in ("family_id", "product_id", "duplicate_group")
            )
            found = [_group(*x) for x in zip(families, products, strict=True)]
            splits = draw_splits(found, [x or None for x in duplicates])
            names = [splits[x] for x in found]
        elif not kinds <= set(SPLITS):
            raise CatalogueError(f"{self.folder}: its columns have unknown splits; {AGAIN}")
        codes = np.array([SPLITS.index(x) for x in names], np.int8)
        return StoreListings(str(self.folder), self.fingerprint, np.arange(len(self)), codes)


def _group(family: str, product: str) -> str:
    return Listing("", product, "", b"", family_id=family or None).group


@lru_cache(maxsize=4)
def _records(folder: str) -> ArrayRecordDataSource:
    """Random access to a store's records; one reader per process."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    manifest = Manifest.read(Path(folder))
    try:
        source = ArrayRecordDataSource([str(Path(folder) / x.file) for x in manifest.shards])
        count = len(source)
    except Exception as error:  # Of ArrayRecord.
        raise CatalogueError(f"{folder}: its shards cannot be read ({error}); {AGAIN}") from error
    if count != manifest.listings:
        raise CatalogueError(
            f"{folder}: {MANIFEST} tells of {manifest.listings} listings, but the shards have "
            f"{count}; {AGAIN}"
        )
    return source


def _record(folder: str, number: int) -> bytes:
    """A record as it is stored.

    Raises:
        CatalogueError: it cannot be read.
    """
    try:
        return bytes(_records(folder)[number])
    except CatalogueError:
        raise
    except Exception as error:  # Of ArrayRecord.
        raise CatalogueError(f"the record cannot be read ({error}); {AGAIN}") from error


@lru_cache(maxsize=4)
def _columns(folder: str, fingerprint: str) -> pa.Table:
    """The columns of a store's listings, memory-mapped once per process.

    Args:
        folder: of the store.
        fingerprint: of the store, so that one written in its place later is read anew.
    """
    shards = Manifest.read(Path(folder)).shards
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    tables = []
    for number, shard in enumerate(shards):
        path = Path(folder) / columns_name(number, len(shards))
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            # Arrow believes a file: without this, offsets that are wrong read any memory.
            table.validate(full=True)
            nothing = pa.array([""] * table.num_rows, pa.string())
            for name in ADDED:
                if name not in table.schema.names:  # An older store.
                    table = table.add_column(COLUMNS.index(name), name, nothing)
            if not table.schema.equals(schema) or table.num_rows != shard.listings:
                raise ValueError(f"it has other columns, or not {shard.listings} rows")
        except Exception as error:  # Of Arrow, of the system, or of Python's decoding.
            reason = " ".join(str(error).split())[:200]
            raise CatalogueError(f"{path} cannot be read ({reason}); {AGAIN}") from error
        tables.append(table)
    return pa.concat_tables(tables)


def serialise(x: Listing, pictures: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """A listing as a record, and as its columns."""
    example = to_example(x, pictures)
    several = bool(example[MORE])
    if not several:  # A record then has the fields of earlier versions.
        del example[MORE]
    return to_bytes(example, several=several), to_columns(x)


@dataclass(frozen=True)
class PictureAt:
    """The picture of a store's record."""

    folder: str
    number: int
    place: int = 0
    """Which picture of the record."""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            CatalogueError: the record cannot be read, or lacks the picture.
        """
        try:
            row = parse(_record(self.folder, self.number))
            more: Any = row.get(IMAGES, ())
            if self.place > len(more):
                raise CatalogueError(f"it has no picture {self.place + 1}; {AGAIN}")
        except CatalogueError as error:
            raise CatalogueError(f"{self.folder}: record {self.number}: {error}") from error
        image = more[self.place - 1] if self.place else row["image"]
        assert isinstance(image, bytes)
        return image


class StoreListings(StoredListings):
    """Listings of a store: columns are memory-mapped, pictures are read on demand.

    Worker processes get the path and the numbers, and map the same files.
    """

    def __init__(self, folder: str, fingerprint: str, numbers: np.ndarray, splits: np.ndarray):
        self._folder = folder
        self._store = fingerprint
        self._numbers = numbers
        self._splits = splits

    @property
    def _table(self) -> pa.Table:
        return _columns(self._folder, self._store)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Listing: ...

    @overload
    def __getitem__(self, place: slice) -> StoreListings: ...

    def __getitem__(self, place: int | slice) -> Listing | StoreListings:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        number = int(self._numbers[place])
        texts = {x: self._table.column(x)[number].as_py() for x in COLUMNS if x != "split"}
        return self._listing(texts, number, int(self._splits[place]))

    def __iter__(self) -> Iterator[Listing]:
        for begin in range(0, len(self), 1024):
            numbers = self._numbers[begin : begin + 1024]
            rows = self._table.take(numbers).to_pylist()
            splits = self._splits[begin : begin + 1024]
            for row, number, split in zip(rows, numbers, splits, strict=True):
                del row["split"]
                yield self._listing(row, int(number), int(split))

    def _listing(self, texts: dict[str, str], number: int, split: int) -> Listing:
        values: JsonObject = {name: value or None for name, value in texts.items()}
        for name, kind in (("attributes", str), ("extra", Plain)):
            if values[name]:
                where = f"{self._folder}: record {number}: {name!r}"
                found = parse_json(values[name], where, error=CatalogueError, remedy=AGAIN)
                fits = isinstance(found, dict) and all(isinstance(x, kind) for x in found.values())
                if not fits:
                    raise CatalogueError(f"{where} are not plain values by name; {AGAIN}")
                values[name] = found
        count = values.pop(PICTURES) or "1"
        if not (count.isdecimal() and 0 < len(count) < 3):
            where = f"{self._folder}: record {number}"
            raise CatalogueError(f"{where}: {count[:20]!r} is no number of pictures; {AGAIN}")
        first, *others = (PictureAt(self._folder, number, n) for n in range(max(int(count), 1)))
        return Listing(image=first, more_images=tuple(others), split=SPLITS[split], **values)

    def column(self, name: str) -> list[Any]:
        """See `StoredListings.column`."""
        if name == "split":
            return [SPLITS[x] for x in self._splits]
        if name not in TEXTS:
            return [getattr(x, name) for x in self]
        found = self._table.column(name).take(self._numbers).to_pylist()
        return found if name in REQUIRED else [x or None for x in found]

    def take(self, chosen: np.ndarray | Sequence[int]) -> StoreListings:
        """See `StoredListings.take`."""
        chosen = np.asarray(chosen, np.int64)
        return StoreListings(self._folder, self._store, self._numbers[chosen], self._splits[chosen])

    @property
    def fingerprint(self) -> str:
        """See `StoredListings.fingerprint`."""
        digest = hashlib.sha256(self._store.encode())
        digest.update(self._numbers.astype("<i8").tobytes() + self._splits.tobytes())
        return digest.hexdigest()[:16]
