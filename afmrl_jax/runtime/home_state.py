"""What the state files of a run's home and of its working copy say, checked before it is believed.

Whoever can write the home could otherwise write, read and remove files anywhere on the machines
that read the run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import MAX_BYTES, checked, parse_json, read_json

STATE = "afmrl_state.json"
"""At home: the files that belong to the run; written last, so other files there are unfinished. A
file that replaces an older one may be `at` another name for a while; `rubbish` may be removed."""
BRINGING = "bringing"
"""In a working copy: placeholder for a state that is still being fetched."""
DRIVE = re.compile(r"[A-Za-z]:")
LONGEST = 1024
"""Most bytes of a name; object storage allows no more."""
HOME_REMEDY = (
    "nothing was written or removed; put back the state file of an earlier time, or copy the files "
    "you need from there by hand and start again with another --out"
)
COPY_REMEDY = "remove the working copy; the run is fetched from its home again"


def is_passing(name: str) -> bool:
    """Whether a file is a lock, or unfinished."""
    parts = name.split("/")
    return any(x.startswith(".") or "orbax-checkpoint-tmp" in x for x in parts)


def is_inside(name: str) -> bool:
    """Whether a name is plainly that of a file of a run: relative, never upwards, not hidden."""
    return (
        0 < len(name.encode(errors="replace")) <= LONGEST
        and name.isprintable()
        and "\\" not in name
        and not DRIVE.match(name)
        and all(name.split("/"))
        and not is_passing(name)
        and name != STATE
    )


def require_inside(name: str) -> None:
    """Reject a name that is not `is_inside`.

    Raises:
        ValueError: it is not.
    """
    if not is_inside(name):
        raise ValueError(f"{name[:100]!r} is no name of a file inside a run")


@dataclass(frozen=True)
class SentFile:
    """A file at home."""

    sent: str
    """The state with which it came."""
    size: int
    at: str | None = None
    """Its name there, if that is not its own."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size {self.size} is negative")
        if self.at is not None:
            require_inside(self.at)


@dataclass(frozen=True)
class HomeState:
    """The state at home; of a run that was never sent, the default."""

    state: str | None = None
    files: dict[str, SentFile] = field(default_factory=dict)
    rubbish: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.files, *self.rubbish):
            require_inside(name)
        _require_no_folders(self.files)
        # It becomes part of names.
        if self.state is not None and (self.state == BRINGING or not is_inside(self.state)):
            raise ValueError(f"{self.state[:100]!r} is no name of a state")


@dataclass(frozen=True)
class KeptFile:
    """A file of a working copy, as it was when it was sent or fetched."""

    sent: str
    stamp: tuple[int, int]
    """Its size, and its modification time in ns."""


@dataclass(frozen=True)
class KnownState:
    """What a working copy knows of its home."""

    state: str | None = None
    files: dict[str, KeptFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            require_inside(name)


def _require_no_folders(files: Mapping[str, object]) -> None:
    for name in files:
        for folder in PurePosixPath(name).parents:
            if str(folder) in files:
                raise ValueError(f"{str(folder)!r} is both a file and a folder")


def read_if_there(path: Path) -> bytes | None:
    """The bytes of a state at home, or the first of too many; None if there is no state."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse_home(raw: bytes, path: Path) -> HomeState:
    """The state at home.

    Raises:
        RunError: it is broken, or names something outside the run; the message names it.
    """
    if len(raw) > MAX_BYTES:
        raise RunError(f"{path} is larger than {MAX_BYTES:,} bytes; {HOME_REMEDY}")
    found = parse_json(raw, path, remedy=HOME_REMEDY)
    return checked(HomeState, found, path, remedy=HOME_REMEDY)


def read_known(path: Path) -> KnownState:
    """What a working copy knows of its home."""
    found = read_json(path, remedy=COPY_REMEDY)
    return checked(KnownState, found, path, remedy=COPY_REMEDY)


def write_known(path: Path, state: KnownState) -> None:
    """Write what a working copy knows of its home."""
    write_json(path, dataclasses.asdict(state))


def read_names(path: Path) -> set[str]:
    """A list of names of files at home."""
    found = checked(list[str], read_json(path, remedy=COPY_REMEDY), path, remedy=COPY_REMEDY)
    for name in found:
        if not is_inside(name):
            raise RunError(f"{path}: {name[:100]!r} is no name inside a run; {COPY_REMEDY}")
    return {*found}


def require_no_link_out(path: Path, folder: Path) -> None:
    """Reject a file that a link takes out of its folder.

    Raises:
        RunError: a folder on the way is a link to somewhere else.
    """
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{path.parent} is a link that leads out of {folder}; remove it")
