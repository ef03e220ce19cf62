"""A run directory on this machine whose home is object storage, and what goes between the two."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from afmrl_jax.errors import RunError
from afmrl_jax.files import atomic_path, read_json, unused, write_json
from afmrl_jax.progress import Progress, say

KNOWN = ".home.json"
"""In a working copy: what of it is at home, and as of which of its states."""
NEXT = ".home.next.json"
"""In a working copy: what it knows as soon as the state that is being sent is at home."""
STATE = "afmrl_state.json"
"""At home: the files that belong to the run; written last, so others there are not finished. One
that stood there before may lie `at` another name for a while; `rubbish` is what may be removed."""
LOCK = ".lock"
"""In a run directory: held by the job that works on it."""
FINISHED = "evaluate/DONE.json"
"""A run that has it is worked on by no job any more."""
BRINGING = "bringing"
"""Stands for a state while it is not here yet."""
TRIES = 4
WORTH_A_WORD = 10.0
"""Seconds that sending takes, from which on the user is told."""
BLOCK = 1 << 24


class WorkingCopy:
    """A run directory on this machine, and its home."""

    def __init__(self, home: Path, folder: Path, *, works: bool = False):
        self.home = home
        self.folder = folder
        self.works = works
        """Whether this process works on the run, and does not only read it."""
        self._cleaned: str | None = None
        """The state at home whose rubbish is removed."""

    def bring(self) -> None:
        """Make this folder what is at home, unless it is that, or ahead of it, already.

        Where both have changed, home counts, and the folder is moved aside. What a job of this
        machine works on stays as it is.
        """
        with self._alone():
            if not self._in_use():
                self._bring()

    def _bring(self) -> None:
        known, there = self._known(), self._there()
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
                self._tried(partial(self._bring_one, name, wanted[name]), name)
                progress.update(number)
        here = self._here()
        files = {x: {"sent": wanted[x]["sent"], "stamp": here[x]} for x in wanted}
        write_json(self.folder / KNOWN, {"state": there["state"], "files": files})

    def take_home(self) -> None:
        """Send what has changed since it was sent last.

        What a command that only reads leaves in a run of which a job may be at work stays here.

        Raises:
            RunError: the home cannot be reached, or another job has changed it.
        """
        with self._alone():
            # The job that works on it here sends it.
            if self.works or not self._in_use():
                self._take_home()

    def _take_home(self) -> None:
        began = time.monotonic()
        known, here = self._known(), self._here()
        before = known["files"]
        changed, gone = _changed(before, here), before.keys() - here.keys()
        if not changed and not gone:
            return
        there = self._there() or {"state": None, "files": {}}
        moved = there["state"] != known["state"]
        if not self.works and (moved or FINISHED not in there["files"]):
            say(
                f"{self.home}: a job may be working on it, so what this command has written into "
                f"the run stays in {self.folder}"
            )
            return
        if moved:
            raise RunError(
                f"{self.home} has been changed by another job since this one began; see that only "
                f"one works on it, then start the same command again: it goes on from there, and "
                f"puts {self.folder} aside"
            )
        self._send(changed, here, known, there)
        seconds = time.monotonic() - began
        if seconds > WORTH_A_WORD:
            amount = sum(here[x][0] for x in changed) / 1e6
            say(f"{self.home}: {len(changed)} files ({amount:,.0f} MB) sent in {seconds:.0f} s")

    def _send(
        self,
        changed: set[str],
        here: dict[str, list[int]],
        known: dict[str, Any],
        there: dict[str, Any],
    ) -> None:
        before, held = known["files"], there["files"]
        state = secrets.token_hex(8)
        files = {
            x: {"sent": state if x in changed else before[x]["sent"], "stamp": here[x]}
            for x in here
        }
        rubbish = {x for x in held if x not in here}
        if self._cleaned != there["state"]:
            rubbish |= {*there.get("rubbish", [])}
        at = {}
        for name, about in held.items():
            if "at" in about and name in here and name not in changed:
                at[name] = about["at"]
            elif "at" in about:
                rubbish.add(about["at"])
        # What the state at home names must not be overwritten yet. Called after that state, so
        # that who tries again leaves nothing behind.
        aside = {x: f"{x}.after-{there['state']}" for x in changed if x in held}
        # What says that something is finished goes last.
        for name in sorted(changed, key=lambda x: (x.endswith("DONE.json"), x)):
            self._send_one(name, aside.get(name, name))
        at |= aside
        self._tell(state, files, at, rubbish)
        if at:
            # Now they can take their own names, under which they are easier to find.
            for name in sorted(at):
                self._send_one(name, name)
            rubbish |= {*at.values()}
            state = f"{state}-2"
            self._tell(state, files, {}, rubbish)
        for name in sorted(rubbish - files.keys()):
            self._tried(partial((self.home / name).unlink, missing_ok=True), name)
        self._cleaned = state

    def _send_one(self, name: str, to: str) -> None:
        self._tried(partial(_copy, self.folder / name, self.home / to), to)

    def _tell(
        self, state: str, files: dict[str, Any], at: dict[str, str], rubbish: set[str]
    ) -> None:
        """Make a state the one at home."""
        sent = {
            x: {"sent": y["sent"], "size": y["stamp"][0]} | ({"at": at[x]} if x in at else {})
            for x, y in files.items()
        }
        write_json(self.folder / NEXT, {"state": state, "files": files})
        note = {"state": state, "files": sent, "rubbish": sorted(rubbish)}
        path = write_json(self.folder / f".{STATE}", note)
        self._tried(partial(_copy, path, self.home / STATE), STATE)
        os.replace(self.folder / NEXT, self.folder / KNOWN)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this machine brings or sends."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f".{self.folder.name}{LOCK}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{self.home}: another process brings or sends it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _in_use(self) -> bool:
        """Whether a job holds the folder, as `training.lineage.Run` does."""
        path = self.folder / LOCK
        if not path.is_file():
            return False
        with path.open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

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
        path, coming = self.folder / KNOWN, self.folder / NEXT
        if coming.is_file():
            # Cut off in `_tell`, before or behind the moment from which the state counts.
            there = self._there()
            if there is not None and there["state"] == read_json(coming)["state"]:
                os.replace(coming, path)
            coming.unlink(missing_ok=True)
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

    def _bring_one(self, name: str, wanted: dict[str, Any]) -> None:
        source, size = self.home / wanted.get("at", name), wanted["size"]
        with atomic_path(self.folder / name) as temporary:
            _copy(source, temporary)
            # A log is sent before the state that names its size, and may be longer.
            if temporary.stat().st_size < size:
                raise OSError(f"{source} has fewer than the {size} bytes that were sent")

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
