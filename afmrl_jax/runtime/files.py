"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from afmrl_jax.errors import ConfigError, RunError

REMOTE = re.compile(r"(gs|s3|az):/+(.*)", re.DOTALL)
"""Paths in object storage; `pathlib` turns two slashes into one."""


_WRITES = True


def only_first_writes(is_first: bool) -> None:
    """Set whether this process is the one of its job that writes files."""
    global _WRITES
    _WRITES = is_first


def is_writer() -> bool:
    """Whether this process writes files."""
    return _WRITES


def resolve_path(path: Path | str) -> Path:
    """A path on this machine, or in object storage (gs://, s3://, az://).

    Raises:
        ConfigError: the path is remote and cannot be reached, or the packages for such paths are
            not installed.
    """
    remote = REMOTE.fullmatch(os.fspath(path))
    if remote is None:
        return Path(path)
    from etils import epath

    text = f"{remote[1]}://{remote[2]}"
    try:
        found = epath.Path(text)
        found.exists()
    except ImportError as error:
        raise ConfigError(
            f"{text} cannot be reached: {error}; `pip install 'afmrl-jax[remote]'` installs "
            "support for object storage"
        ) from error
    except Exception as error:  # Every store has its own.
        raise ConfigError(
            f"{text} cannot be reached: {error}; check the name, and that this machine has network "
            "access and credentials for it"
        ) from error
    return cast(Path, found)


def user_cache() -> Path:
    """The package's folder among the user's caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afmrl_jax"


def first_unused(name: Callable[[int], Path]) -> Path:
    """The first path of `name(1)`, `name(2)`, ... that does not exist."""
    return next(path for path in map(name, itertools.count(1)) if not path.exists())


def is_local(path: Path) -> bool:
    """Whether a path is on this machine."""
    return REMOTE.fullmatch(os.fspath(path)) is None


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path to write to; it takes the name `path` only if the block ends without an error.

    Works for a file and for a folder. What a killed process left under the temporary name is
    overwritten by the next one. If another process of the job does the writing, the path is a
    scratch one that is discarded.

    Raises:
        RunError: the disk is full; the message names the file.
    """
    path = Path(path)
    if not _WRITES:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / path.name
        return
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(path)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        if error.errno == errno.ENOSPC:
            raise disk_full(path) from error
        raise
    except BaseException:
        _remove(temporary)
        raise


def take_lock(file: IO[str]) -> bool:
    """Lock an open file for this process until it is closed, unless another has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file; calls `waiting` before waiting for another process that holds it."""
    with path.open("w") as file:
        if not take_lock(file):
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def disk_full(path: Path | str) -> RunError:
    """The error for a full disk."""
    return RunError(
        f"no space left on the disk while writing {path}; free some space (or choose another "
        "--out) and start the same command again: finished work is kept and continued"
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if "RESOURCE_EXHAUSTED" in str(error) and "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> Path:
    """Write a UTF-8 text file, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path | str, value: object) -> Path:
    """Write indented JSON, completely or not at all."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; if it is broken, the error names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def read_lines(path: Path | str, *, repair: bool = False) -> list[str]:
    """The complete lines of an append-only file; none if the file does not exist.

    A torn last line, as a killed process leaves it, is skipped.

    Args:
        path: of the file.
        repair: also truncate the torn line, so that the file can be appended to.
    """
    path = Path(path)
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if repair and len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    # Not `splitlines`, which also splits at some characters inside JSON text.
    return whole.decode().split("\n")[:-1]


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
