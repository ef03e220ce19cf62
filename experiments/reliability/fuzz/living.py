"""Target: an index that changes, of which the log or the thumbnails are broken."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.runs.embedded import ABOUT, LISTINGS, LOG, THUMBNAILS, About
from afmrl_jax.runs.living.changes import Entry
from afmrl_jax.runs.living.filters import parse_where
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.runs.living.maintenance import compact, stats
from afmrl_jax.runtime.record_log import RecordLog
from afmrl_jax.testing import draw_badge
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.mutate import (
    Rng,
    Spoiled,
    pick,
    spoil_bytes,
    spoil_json,
    spoil_place,
)
from experiments.reliability.made_index import made_entry, write_made

DIM, COUNT = 8, 12
WRITER = "fuzz"
TOLERANCE = 0.02
"""By which a cosine may be more than 1."""
_LENGTH = struct.Struct("<I")
Content = dict[str, list[Any]]
"""Line, vector and thumbnail of each listing, by id."""


def _entry(name: str, version: int) -> Entry:
    return made_entry(
        name,
        version,
        DIM,
        partial(draw_badge, "circle", "red", "a"),
        attributes="color: red; shape: circle",
        extra={"price": version, "brand": "Acme"},
    )


def write_living(folder: Path) -> None:
    """Write a small index with thumbnails, and a log of seven changes."""
    about = About("infonce", "shop", "e", thumbnails=64)
    write_made(folder, [_entry(f"old-{n}", n) for n in range(COUNT)], about)
    with LivingIndex(folder, writer=WRITER) as index:
        for number in range(3):
            index.put([_entry(f"new-{number}-{n}", 20 + n) for n in range(3)])
            index.put([_entry(f"old-{number}", 30), _entry(f"new-{number}-1", 40)])
        index.remove(["old-5", "new-0-0", "new-1-1"])


def _content(index: LivingIndex) -> Content:
    return {
        x.listing_id: [
            {name: y for name, y in x.line.items() if name != "thumbnail"},
            x.vector.tobytes(),
            x.thumbnail,
        ]
        for x in index.entries()
    }


def _records(path: Path) -> list[bytes]:
    return [record for _, record in RecordLog(path, remedy="").read()]


def _write_records(path: Path, records: Sequence[bytes]) -> None:
    """A log whose checksums fit, as a stranger can make one."""
    path.unlink(missing_ok=True)
    log = RecordLog(path, remedy="")
    for x in records:
        log.append(x)
    log.close()


def _histories(room: Room) -> list[Content]:
    """What the good index held after each of its records."""
    if "living" not in room.kept:
        folder = room.folder / "whole"
        shutil.copytree(room.good / "living", folder)
        records, found = _records(folder / LOG), []
        for count in range(len(records) + 1):
            _write_records(folder / LOG, records[:count])
            with LivingIndex(folder) as index:
                found.append(_content(index))
        room.kept["living"] = found
    histories: list[Content] = room.kept["living"]
    return histories


def _headed(records: list[bytes], rng: Rng) -> Spoiled:
    """Break the head of a record, whose checksum fits again."""
    at = int(rng.integers(len(records)))
    if at == 0:
        found = spoil_json(json.loads(records[0]), rng)
        records[0] = found.text
        return Spoiled(f"first record: {found.spoiled.what}", found.spoiled.invalid)
    (length,) = _LENGTH.unpack_from(records[at])
    end = _LENGTH.size + length
    found = spoil_json(json.loads(records[at][_LENGTH.size : end]), rng)
    told = len(found.text)
    if rng.random() < 0.1:
        told = int(pick(rng, (0, 1, told + 1, 2**32 - 1)))
    records[at] = _LENGTH.pack(told) + found.text + records[at][end:]
    return Spoiled(f"record {at + 1}: {found.spoiled.what}", found.spoiled.invalid)


def _with_vector(records: list[bytes], rng: Rng) -> Spoiled:
    """Put numbers in a record that make no unit vector."""
    (length,) = _LENGTH.unpack_from(records[1])
    begin = _LENGTH.size + length
    end = begin + DIM * 4
    values = np.frombuffer(records[1][begin:end], "<f4").copy()
    kind = pick(rng, ("NaN", "infinity", "zeros", "doubled", "1e30"))
    if kind == "doubled":
        values *= 2
    elif kind == "zeros":
        values[:] = 0
    else:
        values[int(rng.integers(DIM))] = {"NaN": np.nan, "infinity": np.inf, "1e30": 1e30}[kind]
    records[1] = records[1][:begin] + values.tobytes() + records[1][end:]
    return Spoiled(f"a vector: {kind}", True)


def _ordered(records: list[bytes], rng: Rng) -> Spoiled:
    kind = pick(rng, ("without the first", "the first twice", "of another index", "repeated"))
    if kind == "without the first":
        del records[0]
    elif kind == "the first twice":
        records.insert(1, records[0])
    elif kind == "of another index":
        records[0] = json.dumps(json.loads(records[0]) | {"index": "another"}).encode()
    else:
        records.append(records[int(rng.integers(1, len(records)))])
    return Spoiled(kind, kind != "repeated")


def _in_log(folder: Path, rng: Rng) -> Spoiled:
    """Break a record of the log so that its checksum fits."""
    records = _records(folder / LOG)
    made = pick(rng, (_headed, _headed, _headed, _with_vector, _ordered))(records, rng)
    _write_records(folder / LOG, records)
    found: Spoiled = made
    return found


def _placed(folder: Path, rng: Rng) -> Spoiled:
    """Break a listing's line, or the pictures, and seal the folder again."""
    (folder / LOG).unlink()
    if rng.random() < 0.3:
        spoiled = spoil_bytes((folder / THUMBNAILS).read_bytes(), rng)
        (folder / THUMBNAILS).write_bytes(spoiled[0])
        what, invalid = spoiled[1].what, False
    else:
        lines = (folder / LISTINGS).read_bytes().splitlines()
        number = int(rng.integers(len(lines)))
        line = json.loads(lines[number])
        place = pick(rng, (("thumbnail",), ("thumbnail", 0), ("thumbnail", 1), ("extra",), None))
        found = spoil_json(line, rng, place)
        lines[number] = found.text
        (folder / LISTINGS).write_bytes(b"\n".join(lines) + b"\n")
        what, invalid = f"line {number + 1}: {found.spoiled.what}", found.spoiled.invalid
    old = json.loads((folder / ABOUT).read_text())
    About(old["system"], old["catalogue"], old["embedder"], thumbnails=64).write(folder)
    return Spoiled(f"sealed again, {what}", invalid)


def _use(folder: Path) -> Content:
    """Everything that commands and the service read of an index."""
    queries = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with LivingIndex(folder) as index:
        content = _content(index)
        hits = [x for row in index.search(queries, 5) for x in row]
        for where in ("price<25", "attributes.color=red", "title~title"):
            hits += [x for row in index.search(queries, 5, parse_where([where])) for x in row]
        for name, score in hits:
            if not abs(score) <= 1 + TOLERANCE:
                raise AcceptedWrongError(f"a cosine of {score} was taken")
            index.shown(name)
    stats(folder)
    return content


def _go_on(folder: Path, content: Content) -> None:
    """Add a listing, compact, and see that nothing else has changed."""
    added = _entry("added", 50)
    with LivingIndex(folder, writer=WRITER) as index:
        index.put([added])
    compact(folder)
    found = _use(folder)
    wanted = content | {"added": [added.line, added.vector.tobytes(), added.thumbnail]}
    if found != wanted:
        raise AcceptedWrongError("a change and a compaction changed something else")


@target("living")
def living(room: Room) -> Case:
    """An index of which the log or the thumbnails are broken, with checksums that fit or not.

    Where they do not fit, what is read must be what was acknowledged up to some record.
    """
    rng, histories = room.rng, _histories(room)
    folder = room.folder / f"living-{room.folder.name}"
    shutil.copytree(room.good / "living", folder)
    kind = pick(
        rng, ("log", "log", "log", "place", "record", "record", "record", "small", "placed")
    )
    allowed: list[Content] | None = None
    if kind == "record":
        spoiled, wrong = (found := _in_log(folder, rng)), found.invalid
    elif kind == "placed":
        spoiled, wrong = (found := _placed(folder, rng)), found.invalid
    else:
        path = folder / (THUMBNAILS if kind == "small" else LOG)
        before = path.read_bytes()
        if kind == "place" or (kind == "small" and rng.random() < 0.3):
            spoiled = spoil_place(path, rng)
            # Without a log, an index is one that nothing was added to.
            wrong = spoiled.gone and (kind == "small" or spoiled.what != "missing")
        else:
            data, spoiled = spoil_bytes(before, rng)
            path.write_bytes(data)
            wrong = kind == "small" and data != before
        allowed = histories[-1:] if kind == "small" else histories

    def act() -> None:
        content = _use(folder)
        if allowed is not None and content not in allowed:
            raise AcceptedWrongError("what is read was at no time in the index")
        _go_on(folder, content)

    return Case(f"{kind}: {spoiled.what}", act, wrong=wrong)
