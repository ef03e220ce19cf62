"""What a command may write over: nothing, an empty place, or its own earlier output."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from afmrl_jax.errors import AfmrlError, ConfigError
from afmrl_jax.runtime.files import claim, is_local
from afmrl_jax.runtime.json_files import lines_of, open_regular, parse_json, read_json
from afmrl_jax.types import JsonObject

NAMED = 3
"""Most files named in a message."""
START = 4096
"""Bytes at the start of a text file in which its mark stands."""

OwnFile = Callable[[Path], bool]
"""Whether a file is an earlier output of the command."""
OwnFolder = Callable[[Path], Collection[str] | None]
"""Names (relative, with slashes) of what the command wrote in a folder; None if it is not its."""


def require_own_output(
    out: Path,
    command: str,
    *,
    file: OwnFile | None = None,
    folder: OwnFolder | None = None,
    error: type[AfmrlError] = ConfigError,
) -> None:
    """Refuse an output that would replace what another program or a person made.

    Args:
        out: where the command will write.
        command: its name, as in `afmrl embed`.
        file: for a command that writes a file: recognizes its own.
        folder: for one that writes a folder: recognizes its own. Without either, the command
            writes a folder that must be empty or not exist.
        error: the kind that is raised.

    Raises:
        AfmrlError: of the kind `error`; it says what lies there and how to go on.
    """
    if not is_local(out):
        raise error(f"{out}: write to this machine, then copy the result there")
    if not os.path.lexists(out) or (out.is_symlink() and not out.exists()):
        return
    if out.is_dir():
        if file is not None:
            raise error(f"{out} is a folder; `{command}` writes a file: name one, as in {out}/NAME")
        _require_own_folder(out, command, folder, error)
        return
    if not out.is_file():
        raise error(f"{out} is a pipe or a device; choose a file as --out")
    if file is not None and (out.stat().st_size == 0 or file(out)):
        return
    raise error(
        f"{out} was not written by `{command}` and would be replaced; it is a file that starts "
        f"with {_start(out)}; choose another --out, or remove it first"
    )


def _require_own_folder(
    out: Path, command: str, folder: OwnFolder | None, error: type[AfmrlError]
) -> None:
    there = sorted(x.name for x in out.iterdir())
    if not there:
        return
    if folder is None:
        raise error(f"{out} exists; choose another --out, or remove it; it holds {_names(there)}")
    own = folder(out)
    if own is None:
        raise error(
            f"{out} was not written by `{command}` and would be replaced; it holds "
            f"{_names(there)}; choose another --out, or remove it first"
        )
    foreign = sorted(
        x.relative_to(out).as_posix()
        for x in out.rglob("*")
        if (x.is_symlink() or not x.is_dir()) and x.relative_to(out).as_posix() not in own
    )
    if foreign:
        raise error(
            f"{out} holds {_names(foreign)}, not written by `{command}`, and would be replaced; "
            "move that elsewhere first, or choose another --out"
        )


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(x)[1:-1] for x in islice(names, NAMED))
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _start(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return repr(file.read(40).decode("utf-8", "replace"))
    except OSError:
        return "nothing readable"


def first_record(path: Path) -> JsonObject:
    """The object on the first line of a file; empty if there is none."""
    try:
        _, line = next(lines_of(path))
        return _object(parse_json(line, path, nan=True))
    except (AfmrlError, OSError, StopIteration):
        return {}


def whole_record(path: Path) -> JsonObject:
    """The object that a JSON file holds; empty if it holds none."""
    try:
        return _object(read_json(path, nan=True))
    except AfmrlError:
        return {}


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}


def is_marked(path: Path, mark: str) -> bool:
    """Whether a text that only one command writes stands near the start of a file."""
    try:
        with open_regular(path) as file:
            return mark.encode() in file.read(START)
    except OSError:
        return False


@contextmanager
def only_writer(out: Path, command: str) -> Iterator[None]:
    """Hold the lock of an output, `.NAME.lock` next to it, which is removed at the end.

    Raises:
        RunError: another process holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    busy = f"another `{command}` is writing {out}; wait until it has ended, or choose another --out"
    while True:
        with claim(path, busy) as file:
            if not _is_at(path, file.fileno()):
                continue  # Whoever held it has just removed it: the next may hold another file.
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False
