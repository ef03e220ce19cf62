"""Run directories whose home is object storage (gs://, s3://, az://).

A run maps files into memory, appends to logs and renames folders, which object storage cannot do.
So it is worked on in a folder of this machine, its working copy, and its home gets what has changed
whenever something is finished: a checkpoint, a stage, the command. On a machine without the
working copy it is brought from the home first. A run at home is therefore always one that could
have been killed here at that moment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from afmrl_jax.errors import RunError
from afmrl_jax.files import REMOTE, atomic_path, place, read_json, unused, user_cache, write_json
from afmrl_jax.processes import first_does, is_first
from afmrl_jax.progress import Progress, say

WORK = "AFMRL_WORK"
"""Environment variable: the folder of working copies."""
KNOWN = ".home.json"
"""In a working copy: what of it is at home, and as of which of its states."""
STATE = "afmrl_state.json"
"""At home: the files that belong to the run; written last, so others there are not finished."""
BRINGING = "bringing"
"""Stands for a state while it is not here yet."""
TRIES = 4
WORTH_A_WORD = 10.0
"""Seconds that sending takes, from which on the user is told."""
BLOCK = 1 << 24

_COPIES: dict[Path, WorkingCopy] = {}


def working_folder(run: Path | str) -> Path:
    """The folder to work in: a local run directory itself, else that of its working copy.

    The copies are below `AFMRL_WORK`, or the user's cache folder.
    """
    remote = REMOTE.fullmatch(os.fspath(run))
    if remote is None:
        return Path(run)
    return Path(os.environ.get(WORK) or user_cache() / "runs") / remote[1] / remote[2]


def working_copy(run: Path | str) -> Path:
    """`working_folder`, as new as the run's home; all processes of a job must ask.

    Raises:
        ConfigError: what reads such paths is not installed, or the home cannot be reached.
        RunError: it cannot be reached any more.
    """
    folder = working_folder(run)
    if folder != Path(run):
        copy = _COPIES.setdefault(folder.absolute(), WorkingCopy(place(run), folder))
        first_does(copy.bring, f"bringing {copy.home}")
    return folder


def keep(path: Path) -> None:
    """Take home what has changed in the working copy that `path` lies in, if it lies in one.

    Raises:
        RunError: the home cannot be reached, or another job has changed it.
    """
    path = path.absolute()
    for folder, copy in _COPIES.items():
        if path.is_relative_to(folder) and is_first():
            copy.take_home()


def keep_all() -> None:
    """`keep` for all working copies of this process."""
    for folder in _COPIES:
        keep(folder)


class WorkingCopy:
    """A run directory on this machine, and its home."""

    def __init__(self, home: Path, folder: Path):
        self.home = home
        self.folder = folder

    def bring(self) -> None:
        """Make this folder what is at home, unless it is that, or ahead of it, already.

        Where both have changed, home counts, and the folder is moved aside.
        """
        there, known = self._there(), self._known()
        if there is None or there["state"] == known["state"]:
            return
        here, before = self._here(), known["files"]
        if known["state"] != BRINGING and _changed(before, here):
            here, before = self._put_aside(), {}
        wanted: dict[str, Any] = there["files"]
        same = {x for x in wanted if before.get(x, {}).get("sent") == wanted[x]["sent"]}
        # Until all is there.
        write_json(self.folder / KNOWN, {"state": BRINGING, "files": {}})
        for name in here.keys() - wanted.keys():
            (self.folder / name).unlink()
            _remove_empty((self.folder / name).parent, self.folder)
        missing = sorted(wanted.keys() - same)
        say(f"{self.home}: bringing {len(missing)} of {len(wanted)} files to {self.folder}")
        with Progress("bring", len(missing)) as progress:
            for number, name in enumerate(missing, 1):
                self._tried(partial(self._bring_one, name, wanted[name]["size"]), name)
                progress.update(number)
        here = self._here()
        files = {x: {"sent": wanted[x]["sent"], "stamp": here[x]} for x in wanted}
        write_json(self.folder / KNOWN, {"state": there["state"], "files": files})

    def take_home(self) -> None:
        """Send what has changed since it was sent last."""
        began = time.monotonic()
        known, here = self._known(), self._here()
        before = known["files"]
        changed, gone = _changed(before, here), before.keys() - here.keys()
        if not changed and not gone:
            return
        there = self._there()
        if there is not None and there["state"] != known["state"]:
            raise RunError(
                f"{self.home} has been changed by another job since this one began; see that only "
                f"one works on it, then start the same command again: it goes on from there, and "
                f"puts {self.folder} aside"
            )
        state = secrets.token_hex(8)
        # What says that something is finished goes last.
        for name in sorted(changed, key=lambda x: (x.endswith("DONE.json"), x)):
            self._tried(partial(_copy, self.folder / name, self.home / name), name)
        files = {
            x: {"sent": state if x in changed else before[x]["sent"], "stamp": here[x]}
            for x in here
        }
        sent = {x: {"sent": y["sent"], "size": y["stamp"][0]} for x, y in files.items()}
        note = {"state": state, "files": sent}
        with atomic_path(self.folder / f"{KNOWN}.next") as temporary:
            write_json(temporary, note)
            self._tried(partial(_copy, temporary, self.home / STATE), STATE)
        write_json(self.folder / KNOWN, {"state": state, "files": files})
        for name in gone:
            self._tried(partial((self.home / name).unlink, missing_ok=True), name)
        seconds = time.monotonic() - began
        if seconds > WORTH_A_WORD:
            amount = sum(here[x][0] for x in changed) / 1e6
            say(f"{self.home}: {len(changed)} files ({amount:,.0f} MB) sent in {seconds:.0f} s")

    def _put_aside(self) -> dict[str, list[int]]:
        """Move what was never sent to where it is not lost; what is here now: nothing."""
        aside = unused(lambda n: self.folder.with_name(f"{self.folder.name}.unsent-{n}"))
        self.folder.rename(aside)
        say(
            f"warning: {self.home} was changed from elsewhere, and {self.folder} holds what was "
            f"never sent there; that is moved to {aside}"
        )
        return {}

    def _there(self) -> dict[str, Any] | None:
        path = self.home / STATE

        def read() -> dict[str, Any] | None:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

        return self._tried(read, STATE)

    def _known(self) -> dict[str, Any]:
        path = self.folder / KNOWN
        return read_json(path) if path.is_file() else {"state": None, "files": {}}

    def _here(self) -> dict[str, list[int]]:
        """Size and time of change, in ns, of each file that counts."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not _passing(name):
                status = path.stat()
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def _bring_one(self, name: str, size: int) -> None:
        with atomic_path(self.folder / name) as temporary:
            _copy(self.home / name, temporary)
            # A log is sent before the state that names its size, and may be longer.
            if temporary.stat().st_size < size:
                raise OSError(f"{self.home / name} has fewer than the {size} bytes that were sent")

    def _tried(self, work: Callable[[], Any], name: str) -> Any:
        """Do it, again after a while where the network fails."""
        for number in range(1, TRIES + 1):
            try:
                return work()
            except RunError:
                raise
            except Exception as error:  # Every store has its own.
                if number == TRIES:
                    raise RunError(
                        f"{self.home / name} cannot be reached ({error}); what is done so far is "
                        f"in {self.folder}, and the same command goes on from there"
                    ) from error
                time.sleep(2**number)


def _changed(before: dict[str, Any], here: dict[str, list[int]]) -> set[str]:
    """The files that are not as they were when they were sent or brought."""
    return {x for x in here if before.get(x, {}).get("stamp") != here[x]}


def _passing(name: str) -> bool:
    """Whether a file is a lock, or not finished."""
    parts = name.split("/")
    return any(x.startswith(".") or "orbax-checkpoint-tmp" in x for x in parts)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove folders that hold nothing any more: an empty one could be taken for a checkpoint."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, BLOCK)
