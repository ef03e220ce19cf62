"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.runtime.json_files import json_text, open_regular

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
def atomic_path(path: Path | str, *, everywhere: bool = False) -> Iterator[Path]:
    """A path to write to; it takes the name `path` only if the block ends without an error.

    Works for a file and for a folder, and for several processes at once: each has a temporary name
    of its own, and the last to end wins. What a killed process left is removed by the next one. If
    another process of the job does the writing, the path is a scratch one that is discarded.

    Args:
        path: of the file or folder.
        everywhere: write in every process of a job, as for the cache of a machine.

    Raises:
        RunError: the disk is full or cannot be written to; the message names the file.
    """
    path = Path(path)
    if not (_WRITES or everywhere):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / path.name
        return
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _exchange(temporary, path)
            _remove(temporary)
        else:
            os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise (unwritable(path, error) or error) from error
    except BaseException:
        _remove(temporary)
        raise


_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:6]
_TEMPORARY = re.compile(r"\.(.+)\.([0-9a-f]{6})-([0-9]+)-[0-9a-f]{8}\.partial", re.DOTALL)
_SHOWN = 40
"""Letters of a name that its temporary one repeats, because names may have 255 bytes."""


def _temporary_name(path: Path) -> Path:
    own = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    # In the block of another one: left behind, it is found by the name that both are for.
    outer = _TEMPORARY.fullmatch(path.name)
    shown = (outer[1] if outer else path.name)[:_SHOWN]
    return path.with_name(f".{shown}.{own}.partial")


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files for `path` whose process, on this machine, no longer lives."""
    for found in path.parent.glob(f".{glob.escape(path.name[:_SHOWN])}.*.partial"):
        match = _TEMPORARY.fullmatch(found.name)
        if match and match[2] == _HOST and not _alive(int(match[3])):
            _remove(found)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders' names, so that at no moment either is missing where the system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    arguments = (here, os.fsencode(one), here, os.fsencode(other), swap)
    if hasattr(libc, "renameat2") and libc.renameat2(*arguments) == 0:
        return
    aside = _temporary_name(other)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def take_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process until it is closed, unless another has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_lock(path: Path | str) -> IO[str]:
    """A file to lock, made where there is none; its content is left as it is.

    Raises:
        RunError: the path is a link, a folder, a pipe or a device, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise RunError(
                f"{path} should be a lock file and is a link or a folder; remove it"
            ) from error
        raise (unwritable(path, error) or error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RunError(f"{path} should be a lock file and is a pipe or a device; remove it")
    return os.fdopen(handle, "r+")


def claim(path: Path | str, busy: str) -> IO[str]:
    """A lock file that this process holds until it is closed.

    Args:
        path: see `open_lock`.
        busy: the message if another process holds it.

    Raises:
        RunError: another process holds it, or the file cannot be opened.
    """
    file = open_lock(path)
    if not take_lock(file):
        file.close()
        raise RunError(busy)
    return file


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file; calls `waiting` before waiting for another process that holds it."""
    with open_lock(path) as file:
        if not take_lock(file):
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


_PLACE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    errno.ENAMETOOLONG,
)
"""Errors of a place that the user chose."""


def unwritable(path: Path | str, error: OSError) -> RunError | None:
    """What to tell the user of an error in writing, or None if that is not theirs to mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    if error.errno in _PLACE:
        return RunError(
            f"{path} cannot be written ({error.strerror}); choose another place, or make this one "
            "writable"
        )
    return None


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
        if "database or disk is full" in str(error):  # SQLite's words.
            return True
        error = error.__cause__ or error.__context__
    return False


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until all files below a folder, and their names, are on disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open_regular(path) as file:
                os.fsync(file.fileno())
    sync_folder(folder)


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
    """Write indented JSON, completely or not at all; NaN and infinities become null."""
    return write_text(path, json_text(value, indent=1) + "\n")


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
