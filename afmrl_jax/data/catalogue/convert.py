"""Converts a catalogue to a store, shard by shard; if killed, it resumes after the last shard."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordWriter

from afmrl_jax.data.catalogue.census import Census
from afmrl_jax.data.catalogue.load import Look, Read, read_listings, stopping
from afmrl_jax.data.catalogue.manifest import (
    FORMAT,
    MANIFEST,
    NAME,
    Shard,
    StoredFile,
    columns_name,
    fingerprint_of,
    shard_name,
)
from afmrl_jax.data.catalogue.readers import RowSource
from afmrl_jax.data.catalogue.records import Problem
from afmrl_jax.data.catalogue.store import serialise
from afmrl_jax.data.catalogue.tfds_examples import COLUMNS, DESCRIPTIONS, PART, PICTURES, features
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.files import (
    claim,
    disk_full,
    is_disk_full,
    is_local,
    resolve_path,
    unwritable,
    write_json,
)
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.runtime.terminal import printable
from afmrl_jax.types import JsonObject

SHARD_BYTES = 1 << 28
LOCK = ".lock"
CENSUS = "census.sqlite"


@dataclass(frozen=True)
class Conversion:
    """How a catalogue is converted."""

    skip_bad: bool = False
    """Leave unusable records out, counted and named, instead of stopping."""
    decode_pictures: bool = True
    """Decode every picture, so that none fails in training; otherwise only its header is read."""
    shard_bytes: int = SHARD_BYTES
    """A shard is closed after the record that reaches this size."""

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise ConfigError(f"shard_bytes {self.shard_bytes}: a shard holds at least one byte")

    @property
    def look(self) -> Look:
        """How closely pictures are checked; their bytes are read in any case."""
        return "decode" if self.decode_pictures else "open"


def convert(source: RowSource, out: Path, how: Conversion) -> JsonObject:
    """Write a store of a catalogue's listings, in their order.

    Unfinished work is next to `out`, in `.NAME.partial`: finished shards, and the census with the
    number of records read up to each. If the source has not changed, the next call resumes there.

    Args:
        source: of the records.
        out: folder, which must be empty or not exist.
        how: settings.

    Returns:
        The manifest.

    Raises:
        CatalogueError: a record cannot be used, unless `skip_bad`; or the whole catalogue cannot.
        ConfigError: `out` exists, or is in object storage.
        RunError: the disk is full or cannot be written to, or another process writes `out`.
    """
    if not is_local(resolve_path(out)):
        raise ConfigError(f"{out}: write the store to this machine, then copy the folder there")
    require_own_output(out, "afmrl catalogue-convert")
    work = out.with_name(f".{out.name}.partial")
    try:
        with _held(work, out):
            manifest = _convert(source, work, how)
            work.replace(out)
            # Not before: while it is there, no other process takes the work for abandoned.
            (out / LOCK).unlink()
    except (OSError, sqlite3.Error, RuntimeError) as error:
        if is_disk_full(error) or _has_no_room(error, out.parent):
            raise disk_full(out) from error
        known = unwritable(out, error) if isinstance(error, OSError) else None
        raise (known or error) from error
    return manifest


def _has_no_room(error: Exception, folder: Path) -> bool:
    """Whether SQLite failed to write for want of space, which it often calls an I/O error."""
    few = 1 << 20
    return isinstance(error, sqlite3.OperationalError) and shutil.disk_usage(folder).free < few


@contextmanager
def _held(work: Path, out: Path) -> Iterator[None]:
    """Hold the folder of the unfinished work for this process."""
    if work.is_symlink() or work.is_file():
        raise ConfigError(f"{work} should be a folder of unfinished work and is none; remove it")
    work.mkdir(parents=True, exist_ok=True)
    busy = f"another process is converting to {out}; wait for it, or choose another --out"
    with claim(work / LOCK, busy):
        if out.exists():
            with suppress(OSError):
                (work / LOCK).unlink()
                work.rmdir()
            raise ConfigError(f"{out} was just written by another process; choose another --out")
        yield


def _convert(source: RowSource, work: Path, how: Conversion) -> JsonObject:
    stamp = json.dumps([source.stamp, how.skip_bad, how.look, how.shard_bytes, FORMAT])
    with closing(_census(work, stamp)) as census:
        shards = census.db.execute("SELECT * FROM shard ORDER BY number").fetchall()
        consumed = shards[-1][1] if shards else 0
        left_out = int(census.note("left_out") or 0)
        if shards:
            log_info(f"resumes after {len(shards)} shard(s), {consumed} records")

        def count(problem: Problem) -> None:
            nonlocal left_out
            left_out += 1
            log_info(printable(f"left out: {problem}"))

        finished = census.note("finished") is not None
        if not finished:
            report = stopping(count, skip_bad=how.skip_bad)
            listings = read_listings(source, census, report, look=how.look, begin=consumed)
            with Progress("catalogue-convert", source.count, consumed) as progress:
                for shard in _shards(listings, work, len(shards), how.shard_bytes):
                    census.db.execute("INSERT INTO shard VALUES (?, ?, ?, ?)", shard)
                    census.commit(left_out=str(left_out))
                    progress.update(shard[1])
            census.refuse(source.file)
            census.commit(left_out=str(left_out), finished="yes")
        return _finish(source, work, census, left_out)


def _census(work: Path, stamp: str) -> Census:
    """The census of a conversion: that of an unfinished one, or a new one."""
    path = work / CENSUS
    if path.is_file():
        why = "the catalogue or a setting has changed"
        try:
            census = Census(path)
            if census.note("stamp") == stamp:
                if all(_is_intact(work, about) for about in _shards_of(census)):
                    return census
                why = "finished shards were changed"
            census.close()
        except (sqlite3.DatabaseError, ValueError):
            why = f"{CENSUS} is damaged"
        log_info(f"{work}: {why}; restarting from scratch")
    for old in work.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name != LOCK:
            old.unlink()
    census = Census(path)
    census.commit(stamp=stamp)
    return census


def _shards_of(census: Census) -> list[Shard]:
    """The finished shards, under the names that they will have."""
    rows = census.db.execute("SELECT listings, files FROM shard ORDER BY number").fetchall()
    found = []
    for number, (listings, files) in enumerate(rows):
        (size, digest), columns = json.loads(files)
        about = StoredFile(columns_name(number, len(rows)), *columns)
        found.append(Shard(shard_name(number, len(rows)), listings, size, digest, about))
    return found


def _is_intact(work: Path, shard: Shard) -> bool:
    """Whether the files of a finished shard are those that were written, renamed or not."""
    number = int(shard.file.rpartition("-of-")[0][-5:])
    assert shard.columns is not None
    return all(
        about.is_intact(work) or StoredFile(name, about.bytes, about.sha256).is_intact(work)
        for about, name in zip((shard.records, shard.columns), _temporary(number), strict=True)
    )


def _temporary(number: int) -> tuple[str, str]:
    """Files of a shard and of its columns while the number of shards is not known."""
    return f"shard-{number:05d}", f"columns-{number:05d}"


@dataclass
class _Shard:
    """A shard that is being written."""

    folder: Path
    number: int
    size: int = 0
    columns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.folder / _temporary(self.number)[0]
        # One record per group: records are read one by one, in any order.
        self._writer = ArrayRecordWriter(str(self.path), "group_size:1")

    def add(self, read: Read) -> None:
        data, texts = serialise(read.listing, read.pictures)
        self._writer.write(data)
        self.columns.append(texts)
        self.size += len(data)

    def close(self, consumed: int) -> tuple[int, int, int, str]:
        """Finish the files; returns number, records consumed, listings, and sizes and hashes."""
        self._writer.close()
        # As before there were further pictures, where there are none: the file keeps its hash.
        several = any(texts[PICTURES] for texts in self.columns)
        names = COLUMNS if several else [x for x in COLUMNS if x != PICTURES]
        table = pa.table({x: [texts[x] for texts in self.columns] for x in names})
        path = self.folder / _temporary(self.number)[1]
        with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_file(raw, table.schema) as file:
            file.write_table(table)
        files = [StoredFile.of(x) for x in (self.path, path)]
        about = json.dumps([(x.bytes, x.sha256) for x in files])
        return self.number, consumed, len(self.columns), about


def _shards(
    listings: Iterator[Read], work: Path, first: int, shard_bytes: int
) -> Iterator[tuple[int, int, int, str]]:
    """Finished shards one by one, from number `first` on."""
    shard, consumed = None, 0
    for read in listings:
        shard = shard or _Shard(work, first)
        shard.add(read)
        consumed = read.number
        if shard.size >= shard_bytes:
            yield shard.close(consumed)
            shard, first = None, first + 1
    if shard is not None:
        yield shard.close(consumed)


def _finish(source: RowSource, work: Path, census: Census, left_out: int) -> JsonObject:
    """Give the files their final names and describe them."""
    shards = _shards_of(census)
    for number, shard in enumerate(shards):
        assert shard.columns is not None
        names = (shard.file, shard.columns.file)
        for old, new in zip(_temporary(number), names, strict=True):
            # A conversion that was killed while renaming finds some files renamed already.
            if (work / old).exists():
                (work / old).replace(work / new)
    _describe_for_tfds(work, [x.listings for x in shards], sum(x.bytes for x in shards))
    drawn = census.db.execute("SELECT 1 FROM listing WHERE split IS NULL LIMIT 1").fetchone()
    census.draw_splits()
    summary = census.summary()
    manifest = {
        "format": FORMAT,
        "source": {"name": source.name, "file": source.file},
        **summary,
        "splits_drawn": drawn is not None,
        "left_out": left_out,
        "fingerprint": fingerprint_of(shards),
        "shards": [asdict(x) for x in shards],
        "descriptions": [asdict(StoredFile.of(work / name)) for name in DESCRIPTIONS],
    }
    write_json(work / MANIFEST, manifest)
    census.close()
    for path in work.glob(f"{CENSUS}*"):
        path.unlink()
    return manifest


def _describe_for_tfds(folder: Path, lengths: list[int], size: int) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=NAME,
        split=PART,
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name=PART, shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        split_infos=[split],
        # The check reads a record with TensorFlow, which is not installed.
        check_data=False,
    )
