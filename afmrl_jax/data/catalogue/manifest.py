"""The manifest of a store: which files it has, and what their bytes must be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.data.catalogue.records import Problem
from afmrl_jax.data.catalogue.tfds_examples import DESCRIPTIONS, PART
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import checked, read_json
from afmrl_jax.runtime.seals import Seal

MANIFEST = "manifest.json"
FORMAT = 2
OLDER = 1
"""A format without hashes of columns and descriptions, which is still read."""
NAME = "catalogue"
"""Of the dataset in file names, as TFDS has them."""
AGAIN = "copy the store again, or convert again"


def shard_name(number: int, count: int) -> str:
    """File of a shard, counted from 0, of `count`."""
    return f"{NAME}-{PART}.array_record-{number:05d}-of-{count:05d}"


def columns_name(number: int, count: int) -> str:
    """File of a shard's columns."""
    return f"columns-{number:05d}-of-{count:05d}.arrow"


@dataclass(frozen=True)
class StoredFile:
    """A file of a store."""

    file: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """The record of a file that has been written."""
        seal = Seal.of(path)
        return cls(path.name, seal.bytes, seal.sha256)

    def is_intact(self, folder: Path) -> bool:
        """Whether a folder has the file, with these bytes."""
        path = folder / self.file
        return path.is_file() and Seal(self.bytes, self.sha256).fits(path)


@dataclass(frozen=True)
class Shard:
    """A shard of a store, and its columns."""

    file: str
    listings: int
    bytes: int
    sha256: str
    columns: StoredFile | None = None
    """None in the older format."""

    @property
    def records(self) -> StoredFile:
        """The file of the shard."""
        return StoredFile(self.file, self.bytes, self.sha256)


def fingerprint_of(shards: Sequence[Shard]) -> str:
    """A hash of all shards and their columns."""
    hashes = [x.sha256 + (x.columns.sha256 if x.columns else "") for x in shards]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says of the files; its other entries are for the reader."""

    format: int
    listings: int
    fingerprint: str
    shards: tuple[Shard, ...]
    descriptions: tuple[StoredFile, ...] = ()
    """Of the dataset, for TFDS; none in the older format."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder, whose files are there in full length.

        Raises:
            CatalogueError: it has another format, contradicts itself, or one of the files is
                missing or cut off.
        """
        path = folder / MANIFEST
        content = read_json(path, error=CatalogueError, remedy=AGAIN)
        version = content.get("format") if isinstance(content, dict) else None
        if version not in (OLDER, FORMAT):
            raise CatalogueError(
                f"{path} has format {str(version)[:20]}, not {FORMAT}; convert the catalogue again"
            )
        found = checked(cls, content, path, error=CatalogueError, remedy=AGAIN)
        wrong = found._contradiction()
        if wrong:
            raise CatalogueError(f"{path} contradicts itself ({wrong}); {AGAIN}")
        for about in found.files():
            file = folder / about.file
            if not file.is_file() or file.stat().st_size != about.bytes:
                raise CatalogueError(f"{file} is missing or cut off; {AGAIN}")
        return found

    def _contradiction(self) -> str:
        """What cannot be true; "" if all may be."""
        count = len(self.shards)
        for number, shard in enumerate(self.shards):
            if shard.file != shard_name(number, count):
                return f"shard {number} has another name"
            # A record takes a byte at least, so the sizes of files bound all counts.
            if not 0 < shard.listings <= shard.bytes:
                return f"shard {number} has {shard.listings} listings in {shard.bytes} bytes"
            columns = shard.columns and shard.columns.file
            if columns != (columns_name(number, count) if self.format > OLDER else None):
                return f"the columns of shard {number} have another name"
        if [x.file for x in self.descriptions] != list(DESCRIPTIONS if self.format > OLDER else ()):
            return "it has other descriptions of the dataset"
        if self.listings != sum(x.listings for x in self.shards) or not count:
            return "the listings are not those of the shards"
        if self.fingerprint != fingerprint_of(self.shards):
            return "the fingerprint is not that of the hashes"
        return ""

    def columns(self) -> list[StoredFile]:
        """The files of the columns whose hash is known."""
        return [x.columns for x in self.shards if x.columns]

    def files(self) -> list[StoredFile]:
        """All files whose hash is known."""
        return [*(x.records for x in self.shards), *self.columns(), *self.descriptions]

    def damage(self, folder: Path) -> Iterator[Problem]:
        """A problem for each file whose bytes are not those that were written."""
        for about in self.files():
            if not about.is_intact(folder):
                what = "its bytes are not those that were written (another SHA-256)"
                yield Problem("shard", str(folder / about.file), what, AGAIN)


def lacks_manifest(folder: Path) -> bool:
    """Whether a folder has the files of a store but no manifest."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return False
    names = (f"{NAME}-{PART}.array_record-*", "columns-*.arrow")
    return any(True for name in names for _ in folder.glob(name))
