"""Lines of a file of listings, compressed or not, in bounded memory whatever the file holds."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from afmrl_jax.data.catalogue.records import Problem, Report
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import MAX_LINE, open_regular, parse_json
from afmrl_jax.types import JsonObject

DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
LONGEST_SKIPPED = 1 << 30
"""Bytes of a line that are read to find its end, unpacked: a bomb is given up before that."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file for reading, decompressed if its name ends in .gz; the path may be remote.

    Raises:
        CatalogueError: the file cannot be read, or is a pipe or a device.
    """
    try:
        with open_regular(path, error=CatalogueError) as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file
    except DAMAGED:
        raise
    except OSError as error:
        raise CatalogueError(
            f"{path} cannot be read ({error.strerror or error}); put the file there again"
        ) from error


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1 and without line ends.

    Reports lines that are not UTF-8 or too long, and damage in an archive, after which reading
    stops. Memory is bounded whatever the file unpacks to.

    Raises:
        CatalogueError: the file cannot be opened.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    what, remedy = f"longer than {MAX_LINE:,} bytes", "split or remove the line"
                    ended = raw.endswith(b"\n") or skip_line(file)
                    what += "" if ended else ", and the rest of the file is not read"
                    report(Problem(f"line {number}", str(path), what, remedy))
                    if not ended:
                        return
                    continue
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    what = f"not UTF-8 (byte {error.start})"
                    report(Problem(f"line {number}", str(path), what, "fix or remove the line"))
                    continue
                if line.strip():
                    yield number, line
    except DAMAGED as error:
        what = f"the compressed file is damaged ({error})"
        report(Problem(f"line {number + 1}", str(path), what, "download the file again"))


def skip_line(file: IO[bytes]) -> bool:
    """Read to the end of a line; False if that is too far."""
    for _ in range(LONGEST_SKIPPED // MAX_LINE):
        rest = file.readline(MAX_LINE)
        if not rest or rest.endswith(b"\n"):
            return True
    return False


def read_json_lines(path: Path, report: Report) -> Iterator[tuple[int, JsonObject]]:
    """The JSON objects of a file with one per line, with line numbers; other lines are reported."""
    for number, line in read_lines(path, report):
        try:
            value = parse_json(line, "the line", error=CatalogueError)
        except CatalogueError as error:
            what = str(error).removeprefix("the line is ")
            report(Problem(f"line {number}", str(path), what, "fix or remove the line"))
            continue
        if not isinstance(value, dict):
            what = "not a JSON object"
            report(Problem(f"line {number}", str(path), what, "write one object per line"))
            continue
        yield number, value
