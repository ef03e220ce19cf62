"""Converts a catalogue to a store, shard by shard; if killed, it resumes after the last shard."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordWriter

from afmrl_jax.data.catalogue import store as stored
from afmrl_jax.data.catalogue.census import Census
from afmrl_jax.data.catalogue.load import Look, Read, read_listings, stopping
from afmrl_jax.data.catalogue.readers import RowSource
from afmrl_jax.data.catalogue.records import Problem
from afmrl_jax.data.catalogue.tfds_examples import COLUMNS, PART, features
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.files import (
    disk_full,
    file_hash,
    is_disk_full,
    is_local,
    resolve_path,
    write_json,
)
from afmrl_jax.runtime.outputs import require_own_output
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

SHARD_BYTES = 1 << 28


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
        RunError: the disk is full.
    """
    if not is_local(resolve_path(out)):
        raise ConfigError(f"{out}: write the store to this machine, then copy the folder there")
    require_own_output(out, "afmrl catalogue-convert")
    work = out.with_name(f".{out.name}.partial")
    try:
        manifest = _convert(source, work, how)
        work.replace(out)
    except OSError as error:
        raise (disk_full(out) if is_disk_full(error) else error) from error
    return manifest


def _convert(source: RowSource, work: Path, how: Conversion) -> JsonObject:
    stamp = json.dumps([source.stamp, how.skip_bad, how.look, how.shard_bytes, stored.FORMAT])
    with closing(_census(work, stamp)) as census:
        shards = census.db.execute("SELECT * FROM shard ORDER BY number").fetchall()
        consumed = shards[-1][2] if shards else 0
        left_out = int(census.note("left_out") or 0)
        if shards:
            log_info(f"resumes after {len(shards)} shard(s), {consumed} records")

        def count(problem: Problem) -> None:
            nonlocal left_out
            left_out += 1
            log_info(f"left out: {problem}")

        finished = census.note("finished") is not None
        if not finished:
            report = stopping(count, skip_bad=how.skip_bad)
            listings = read_listings(source, census, report, look=how.look, begin=consumed)
            with Progress("catalogue-convert", source.count, consumed) as progress:
                for shard in _shards(listings, work, len(shards), how.shard_bytes):
                    census.db.execute("INSERT INTO shard VALUES (?, ?, ?, ?, ?)", shard)
                    census.commit(left_out=str(left_out))
                    progress.update(shard[2])
            census.refuse(source.file)
            census.commit(left_out=str(left_out), finished="yes")
        return _finish(source, work, census, left_out)


def _census(work: Path, stamp: str) -> Census:
    """The census of a conversion: that of an unfinished one, or a new one."""
    path = work / "census.sqlite"
    if path.is_file():
        census = Census(path)
        if census.note("stamp") == stamp:
            return census
        census.close()
        log_info(f"{work}: the catalogue or a setting has changed; restarting from scratch")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    census = Census(path)
    census.commit(stamp=stamp)
    return census


@dataclass
class _Shard:
    """A shard that is being written."""

    folder: Path
    number: int
    size: int = 0
    columns: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.folder / f"shard-{self.number:05d}"
        # One record per group: records are read one by one, in any order.
        self._writer = ArrayRecordWriter(str(self.path), "group_size:1")

    def add(self, read: Read) -> None:
        data, texts = stored.serialise(read.listing, read.picture)
        self._writer.write(data)
        self.columns.append(texts)
        self.size += len(data)

    def close(self, consumed: int) -> tuple[int, int, int, int, str]:
        """Finish the files; returns number, listings, records consumed, bytes and hash."""
        self._writer.close()
        table = pa.table({x: [texts[x] for texts in self.columns] for x in COLUMNS})
        path = self.folder / f"columns-{self.number:05d}"
        with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_file(raw, table.schema) as file:
            file.write_table(table)
        size = self.path.stat().st_size
        return self.number, len(self.columns), consumed, size, file_hash(self.path)


def _shards(
    listings: Iterator[Read], work: Path, first: int, shard_bytes: int
) -> Iterator[tuple[int, int, int, int, str]]:
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
    shards = census.db.execute("SELECT number, listings, bytes, sha256 FROM shard ORDER BY number")
    found = shards.fetchall()
    about = []
    for number, listings, size, digest in found:
        name = stored.shard_name(number, len(found))
        for old, new in (
            (f"shard-{number:05d}", name),
            (f"columns-{number:05d}", stored.columns_name(number, len(found))),
        ):
            # A conversion that was killed while renaming finds some files renamed already.
            if (work / old).exists():
                (work / old).replace(work / new)
        about.append({"file": name, "listings": listings, "bytes": size, "sha256": digest})
    _describe_for_tfds(work, [x["listings"] for x in about], sum(x["bytes"] for x in about))
    drawn = census.db.execute("SELECT 1 FROM listing WHERE split IS NULL LIMIT 1").fetchone()
    census.draw_splits()
    summary = census.summary()
    hashes = "".join(x["sha256"] for x in about)
    manifest = {
        "format": stored.FORMAT,
        "source": {"name": source.name, "file": source.file},
        **summary,
        "splits_drawn": drawn is not None,
        "left_out": left_out,
        "fingerprint": hashlib.sha256(hashes.encode()).hexdigest(),
        "shards": about,
    }
    write_json(work / stored.MANIFEST, manifest)
    census.close()
    for path in work.glob("census.sqlite*"):
        path.unlink()
    return manifest


def _describe_for_tfds(folder: Path, lengths: list[int], size: int) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=stored.NAME,
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
