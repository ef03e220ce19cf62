"""Sizes and hashes of files, kept where they are described, so that a change is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.runtime.files import file_hash
from afmrl_jax.runtime.json_files import open_regular


@dataclass(frozen=True)
class Seal:
    """What a file was when it was written."""

    bytes: int
    sha256: str
    """In hexadecimal."""

    @classmethod
    def of(cls, path: Path) -> Seal:
        """The seal of a regular file.

        Raises:
            RunError: it is a pipe or a device.
            OSError: it cannot be read.
        """
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256")
            return cls(file.tell(), digest.hexdigest())

    def fits(self, path: Path) -> bool:
        """Whether a file is still what was sealed; one of another size is not read.

        Raises:
            RunError: it is a pipe or a device.
            OSError: it cannot be read.
        """
        return path.stat().st_size == self.bytes and Seal.of(path) == self


def seals_of(folder: Path) -> dict[str, Seal]:
    """The seals of all files of a folder and its subfolders, by relative name with slashes."""
    found = sorted(x for x in folder.rglob("*") if x.is_file())
    return {x.relative_to(folder).as_posix(): Seal.of(x) for x in found}


def require_sealed(
    folder: Path, seals: Mapping[str, Seal], *, error: type[AfmrlError] = RunError, remedy: str
) -> None:
    """Check that files are what they were when they were written.

    Args:
        folder: of the files.
        seals: by name in the folder.
        error: the kind that is raised.
        remedy: what the user should do, at the end of the message.

    Raises:
        AfmrlError: of the kind `error`: a file is missing or was changed, or a name leads out of
            the folder.
    """
    for name, seal in seals.items():
        path, parts = folder / name, PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise error(f"{folder} should hold a file {name!r}, which is no name in it; {remedy}")
        try:
            same = seal.fits(path)
        except (OSError, ValueError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise error(f"{path} cannot be read ({reason}); {remedy}") from problem
        if not same:
            raise error(f"{path} is not what was written (its size or hash differs); {remedy}")


def check_hashes(folder: Path, wanted: Mapping[str, str], remedy: str) -> None:
    """See that files are still what was written, by records that hold a hash and no size.

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
