"""Files compared with the hashes that were recorded when they were written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import file_hash


def check_hashes(folder: Path, wanted: Mapping[str, str], remedy: str) -> None:
    """See that files are still what was written.

    Args:
        folder: what the names are relative to.
        wanted: SHA-256 by name.
        remedy: what the user should do, at the end of the message.

    Raises:
        RunError: a file is gone or has other bytes; the message names the first.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _state(folder / name, wanted[name]), wanted)
        for name, problem in zip(wanted, found, strict=True):
            if problem:
                raise RunError(f"{folder / name} {problem}; {remedy}")


def _state(path: Path, wanted: str) -> str | None:
    try:
        same = file_hash(path) == wanted
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return None if same else "has changed since it was written"
