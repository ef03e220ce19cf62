"""A catalogue as a store: ArrayRecord shards that TFDS and Grain read, and columns next to them.

manifest.json                                    the contents, and the hash of every shard
catalogue-listings.array_record-00000-of-00004   whole listings with their pictures, in order
columns-00000-of-00004.arrow                     the same without pictures, to be memory-mapped
dataset_info.json, features.json                 for `tfds.builder_from_directory`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from afmrl_jax.data.catalogue.records import SPLITS, Listing, Problem, Report, Row, StoredListings
from afmrl_jax.data.catalogue.schema import REQUIRED
from afmrl_jax.data.catalogue.splits import draw_splits
from afmrl_jax.data.catalogue.tfds_examples import (
    COLUMNS,
    PART,
    TEXTS,
    features,
    from_example,
    to_columns,
)
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import file_hash, is_local
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

MANIFEST = "manifest.json"
FORMAT = 1
NAME = "catalogue"
"""Of the dataset in file names, as TFDS has them."""
READ_AHEAD = 64


def shard_name(number: int, count: int) -> str:
    """File of a shard, counted from 0, of `count`."""
    return f"{NAME}-{PART}.array_record-{number:05d}-of-{count:05d}"


def columns_name(number: int, count: int) -> str:
    """File of a shard's columns."""
    return f"columns-{number:05d}-of-{count:05d}.arrow"


@dataclass(frozen=True)
class Store:
    """A folder that `afmrl catalogue-convert` wrote."""

    folder: Path
    manifest: JsonObject

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
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise CatalogueError(
                f"{folder / MANIFEST} has format {manifest.get('format')}, not {FORMAT}; convert "
                "the catalogue again"
            )
        for about in manifest["shards"]:
            path = folder / about["file"]
            if not path.is_file() or path.stat().st_size != about["bytes"]:
                raise CatalogueError(
                    f"{path} is missing or cut off; copy the store again, or convert again"
                )
        return cls(folder, manifest)

    def __len__(self) -> int:
        return int(self.manifest["listings"])

    @property
    def fingerprint(self) -> str:
        """A hash of all shards."""
        return str(self.manifest["fingerprint"])

    def verify(self) -> Iterator[Problem]:
        """A problem for each shard whose bytes are not those that were written."""
        for about in self.manifest["shards"]:
            path = self.folder / about["file"]
            if file_hash(path) != about["sha256"]:
                what = "its bytes are not those that were written (another SHA-256)"
                yield Problem("shard", str(path), what, "copy the store again, or convert again")

    def rows(self, report: Report) -> Iterator[Row]:
        """All records with their pictures, in order."""
        records = _records(str(self.folder))
        for begin in range(0, len(self), READ_AHEAD):
            chosen = range(begin, min(begin + READ_AHEAD, len(self)))
            for number, data in zip(chosen, records.__getitems__(list(chosen)), strict=True):
                yield f"record {number}", parse(data)

    def listings(self) -> StoreListings:
        """The listings, each with a split: their own, or one drawn by family if they have none."""
        table = _columns(str(self.folder))
        names = table.column("split").to_pylist()
        if not names[0]:
            families, products, duplicates = (
                table.column(x).to_pylist() for x in ("family_id", "product_id", "duplicate_group")
            )
            found = [_group(*x) for x in zip(families, products, strict=True)]
            splits = draw_splits(found, [x or None for x in duplicates])
            names = [splits[x] for x in found]
        codes = np.array([SPLITS.index(x) for x in names], np.int8)
        return StoreListings(self, np.arange(len(self)), codes)


def _group(family: str, product: str) -> str:
    return Listing("", product, "", b"", family_id=family or None).group


@lru_cache(maxsize=4)
def _records(folder: str) -> ArrayRecordDataSource:
    """Random access to a store's records; one reader per process."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    shards = read_json(Path(folder) / MANIFEST)["shards"]
    return ArrayRecordDataSource([str(Path(folder) / x["file"]) for x in shards])


@lru_cache(maxsize=4)
def _columns(folder: str) -> pa.Table:
    """The columns of a store's listings, memory-mapped once per process."""
    count = len(read_json(Path(folder) / MANIFEST)["shards"])
    tables = []
    for number in range(count):
        path = Path(folder) / columns_name(number, count)
        try:
            tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowInvalid) as error:
            raise CatalogueError(
                f"{path} cannot be read ({error}); copy the store again, or convert again"
            ) from error
    return pa.concat_tables(tables)


def _example(data: bytes) -> Mapping[str, bytes]:
    return features().deserialize_example_np(data)


def parse(data: bytes) -> dict[str, object]:
    """A stored record as a raw one."""
    return from_example(_example(data))


def serialise(x: Listing, picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A listing as a record, and as its columns."""
    columns = to_columns(x)
    example = {**columns, "image": picture}
    data = features().serialize_example(features().encode_example(example))
    return data, columns


@dataclass(frozen=True)
class PictureAt:
    """The picture of a store's record."""

    folder: str
    number: int

    def read(self) -> bytes:
        """The encoded picture."""
        return bytes(_example(_records(self.folder)[self.number])["image"])


class StoreListings(StoredListings):
    """Listings of a store: columns are memory-mapped, pictures are read on demand.

    Worker processes get the path and the numbers, and map the same files.
    """

    def __init__(self, store: Store, numbers: np.ndarray, splits: np.ndarray):
        self._store = store
        self._numbers = numbers
        self._splits = splits

    @property
    def _table(self) -> pa.Table:
        return _columns(str(self._store.folder))

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
        if values["attributes"]:
            values["attributes"] = json.loads(values["attributes"])
        picture = PictureAt(str(self._store.folder), number)
        return Listing(image=picture, split=SPLITS[split], **values)

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
        return StoreListings(self._store, self._numbers[chosen], self._splits[chosen])

    @property
    def fingerprint(self) -> str:
        """See `StoredListings.fingerprint`."""
        digest = hashlib.sha256(self._store.fingerprint.encode())
        digest.update(self._numbers.astype("<i8").tobytes() + self._splits.tobytes())
        return digest.hexdigest()[:16]
