"""One large JSON object of records, read record by record in bounded memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from afmrl_jax.data.catalogue.lines import DAMAGED, open_bytes
from afmrl_jax.data.catalogue.records import Problem, Report
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.types import JsonObject

DECODER = json.JSONDecoder()
SPACE = ", \t\r\n\ufeff"
CHUNK = 1 << 16
"""Characters that are read at a time."""
LONGEST = 1 << 20
"""Characters of the longest record: one that cannot be parsed within them is broken."""
KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*')
NEXT = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*\{')


class _Text:
    """The characters of a file that have been read but not consumed."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file = file
        self.buffer = ""
        self.at = 0

    def more(self) -> bool:
        """Read more and drop what has been consumed; False at the end of the file."""
        chunk = self.file.read(CHUNK)
        self.buffer = self.buffer[self.at :] + chunk
        self.at = 0
        return bool(chunk)

    def next(self) -> str:
        """Go to the next character that is not space or a comma; empty at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]


class _Broken(str):
    """What is wrong with an unreadable record."""


def read_table(path: Path, report: Report) -> Iterator[tuple[int, str, JsonObject]]:
    """The records of a file that is one JSON object {id: record}.

    A broken record is reported, and reading continues at the next text that looks like
    `"id": {`.

    Args:
        path: of the file, .gz or not.
        report: called with each problem.

    Yields:
        Number of the record from 1, its id, the record.

    Raises:
        CatalogueError: the file is not a JSON object.
    """
    number = 0
    try:
        with open_bytes(path) as raw:
            unread = _Text(io.TextIOWrapper(raw, encoding="utf-8", errors="replace"))
            if unread.next() != "{":
                raise CatalogueError(
                    f"{path} is not a JSON object of records by id; use the authors' file unchanged"
                )
            unread.at += 1
            while entry := _entry(unread):
                number += 1
                key, value = entry
                if isinstance(value, dict):
                    yield number, key, value
                    continue
                what = value if isinstance(value, _Broken) else "not a JSON object"
                remedy = "fix or remove the record"
                report(Problem(f"record {number} (id {key!r})", str(path), str(what), remedy))
    except DAMAGED as error:
        what = f"the file is damaged or cut off ({error})"
        report(Problem(f"record {number + 1}", str(path), what, "download the file again"))


def _entry(unread: _Text) -> tuple[str, object] | None:
    """The next id and its value, or None at the end of the object.

    Raises:
        EOFError: the file ends before the object does.
    """
    start = unread.next()
    if not start:
        raise EOFError("the closing brace is missing")
    if start == "}":
        return None
    # A chunk may end inside a key or a record: read on before calling it broken.
    while True:
        key = KEY.match(unread.buffer, unread.at)
        problem = "the id is not followed by a record"
        if key:
            try:
                _, end = DECODER.raw_decode(unread.buffer, key.end())
            except json.JSONDecodeError as error:
                problem = f"not valid JSON ({error.msg})"
            except (ValueError, RecursionError):
                problem = "not valid JSON (a number of too many digits, or too deep nesting)"
                break
            else:
                unread.at = end
                return _plain(key[1]), _value(unread.buffer[key.end() : end])
        if len(unread.buffer) - unread.at >= LONGEST or not unread.more():
            break
    key = KEY.match(unread.buffer, unread.at)
    name = _plain(key[1]) if key else unread.buffer[unread.at : unread.at + 20]
    # After the brace of the record, so that its own key is not found again.
    unread.at = min((key.end() if key else unread.at) + 1, len(unread.buffer))
    _skip(unread)
    return name, _Broken(problem)


def _skip(unread: _Text) -> None:
    """Go to the next record after a broken one."""
    while not (found := NEXT.search(unread.buffer, unread.at)):
        # The key of the next record may be cut by the end of the buffer.
        unread.at = max(unread.at, len(unread.buffer) - CHUNK)
        if not unread.more():
            unread.buffer, unread.at = "}", 0
            return
    unread.at = found.start()


def _value(text: str) -> object:
    try:
        return parse_json(text, "the record", error=CatalogueError)
    except CatalogueError as error:
        return _Broken(error)


def _plain(key: str) -> str:
    try:
        return str(json.loads(f'"{key}"', strict=False))
    except ValueError:
        return key
