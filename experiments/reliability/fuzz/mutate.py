"""Ways to break bytes, JSON values and files; everything is decided by a random generator."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
_MARK = "\u2603mark\u2603"
DEEP = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True)
class Spoiled:
    """What was done to an input."""

    what: str
    invalid: bool = False
    """Whether no reader of such a file may take it for good."""
    gone: bool = False
    """Whether something that is no file, or nothing, is in its place."""


def pick(rng: Rng, choices: Any) -> Any:
    """One of a sequence."""
    return choices[int(rng.integers(len(choices)))]


def spoil_bytes(data: bytes, rng: Rng) -> tuple[bytes, Spoiled]:
    """Flip, set, cut, insert, repeat or zero some bytes."""
    if not data:
        return b"\x00", Spoiled("one NUL")
    kind, at = pick(rng, _BYTE_KINDS), int(rng.integers(len(data)))
    count = min(len(data) - at, 2 ** int(rng.integers(0, 9)))
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(int(pick(rng, (1, 1, 1, 4, 32)))):
            changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        return bytes(changed), Spoiled("flipped bits")
    if kind == "set":
        values = bytes(pick(rng, (0, 255, 128, 10, 34, 123)) for _ in range(count))
        return data[:at] + values + data[at + count :], Spoiled(f"{count} bytes set at {at}")
    if kind == "cut":
        return data[:at], Spoiled(f"cut to {at} bytes")
    if kind == "drop":
        return data[:at] + data[at + count :], Spoiled(f"{count} bytes dropped at {at}")
    if kind == "repeat":
        piece = data[at : at + count]
        times = int(pick(rng, (1, 2, 100)))
        return data[:at] + piece * times + data[at:], Spoiled(f"{count} bytes repeated at {at}")
    if kind == "insert":
        noise = rng.bytes(count)
        return data[:at] + noise + data[at:], Spoiled(f"{count} random bytes at {at}")
    if kind == "append":
        return data + rng.bytes(count), Spoiled(f"{count} random bytes appended")
    return bytes(len(data)), Spoiled("all bytes NUL")


_BYTE_KINDS = ("flip", "flip", "flip", "set", "cut", "drop", "repeat", "insert", "append", "zero")
_INVALID = {
    "a whole number of 5,000 digits": "7" * 5000,
    "nested 100,000 deep": DEEP,
    "half a surrogate pair": '"x\\ud800y"',
    "not a word of JSON": "undefined",
}
_PLAIN = {
    "null": "null",
    "true": "true",
    "empty text": '""',
    "a text": '"x"',
    "a script": '"<script>alert(1)</script>"',
    "empty list": "[]",
    "a list": "[1]",
    "empty object": "{}",
    "an object": '{"a": [1]}',
    "0": "0",
    "-1": "-1",
    "1.5": "1.5",
    "1e9": "1000000000",
    "-1e9": "-1000000000",
    "2**63": "9223372036854775808",
    "1e308": "1e308",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "NUL in a text": '"a\\u0000b"',
    "control characters": '"\\u001b]0;own\\u0007"',
    "right-to-left marks": '"\\u202eabc\\u202c"',
    "a long text": json.dumps("x" * 100_000),
    "a way out": '"../../outside/planted"',
    "a place of the system": '"/etc/passwd"',
    "a device": '"/dev/zero"',
}


def places(value: object, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inside: list[tuple[Any, ...]] = []
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value[:40])  # type: ignore[assignment]
    for key, x in items:
        inside.append((*prefix, key))
        inside += places(x, (*prefix, key))
    return inside


@dataclass(frozen=True)
class SpoiledJson:
    """A JSON text with one place changed."""

    text: bytes
    spoiled: Spoiled
    place: tuple[Any, ...]
    raw: str | None
    """The JSON text that stands there now; None if the place is gone."""


def spoil_json(value: Any, rng: Rng, chosen: tuple[Any, ...] | None = None) -> SpoiledJson:
    """Drop a place of a JSON value, or put something else there."""
    found = places(value)
    if not found:
        return SpoiledJson(b"[[", Spoiled("not JSON", True), (), None)
    place = chosen or pick(rng, found)
    value = copy.deepcopy(value)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    key, name = place[-1], ".".join(map(str, place))
    kind = pick(rng, ("drop", "plain", "plain", "plain", "plain", "invalid", "twice"))
    if kind == "drop":
        del holder[key]
        return SpoiledJson(_dumped(value), Spoiled(f"{name} dropped"), place, None)
    before = json.dumps(holder[key])
    if kind == "twice" and isinstance(holder, dict):
        raw, what, invalid = f"{before}, {json.dumps(key)}: null", "twice", True
    else:
        table = _INVALID if kind == "invalid" else _PLAIN
        what = pick(rng, list(table))
        raw, invalid = table[what], kind == "invalid"
    holder[key] = _MARK
    text = _dumped(value).replace(json.dumps(_MARK, ensure_ascii=False).encode(), raw.encode())
    return SpoiledJson(text, Spoiled(f"{name}: {what}", invalid), place, raw)


def _dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _without(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def _long_link(path: Path) -> None:
    # Every step is another link; the system follows forty at most.
    for n in range(60):
        path.with_name(f"{path.name}.{n}").symlink_to(f"{path.name}.{n + 1}")
    path.symlink_to(f"{path.name}.0")


_IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "an empty file": lambda path: path.write_bytes(b""),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a chain of links": _long_link,
    "a folder": _folder,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


def spoil_place(path: Path, rng: Rng) -> Spoiled:
    """Put something that is no such file in a file's place."""
    what = pick(rng, list(_IN_ITS_PLACE))
    _without(path)
    _IN_ITS_PLACE[what](path)
    return Spoiled(what, gone=what != "an empty file")


def spoil_file(path: Path, rng: Rng) -> Spoiled:
    """Break a file by its bytes, by its place, or, if it is JSON or JSON lines, by a value."""
    kinds = ["bytes", "bytes", "place"]
    if path.suffix in (".json", ".jsonl"):
        kinds += ["json"] * 4
    kind = pick(rng, kinds)
    if kind == "place":
        return spoil_place(path, rng)
    data = path.read_bytes()
    if kind == "bytes":
        data, spoiled = spoil_bytes(data, rng)
    elif path.suffix == ".json":
        found = spoil_json(json.loads(data), rng)
        data, spoiled = found.text, found.spoiled
    else:
        data, spoiled = spoil_line(data, rng)
    path.write_bytes(data)
    return spoiled


def spoil_line(data: bytes, rng: Rng) -> tuple[bytes, Spoiled]:
    """Break a value of one line of a file of JSON lines."""
    lines = data.splitlines()
    if not lines:
        return b"{", Spoiled("half an object", True)
    number = int(rng.integers(len(lines)))
    found = spoil_json(json.loads(lines[number]), rng)
    lines[number] = found.text
    what = f"line {number + 1}: {found.spoiled.what}"
    return b"\n".join(lines) + b"\n", Spoiled(what, found.spoiled.invalid)
