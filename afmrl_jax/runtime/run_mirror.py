"""A run directory on this machine whose home is object storage, and what goes between the two."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import (
    atomic_path,
    first_unused,
    locked,
    read_json,
    take_lock,
    write_json,
)
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

T = TypeVar("T")
KNOWN = ".home.json"
"""In a working copy: what of it is at home, and as of which of its states."""
NEXT = ".home.next.json"
"""In a working copy: what it knows as soon as the state that is being sent is at home."""
SENDING = ".home.sending.json"
"""In a working copy: what may lie at home though no state there names it."""
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
NOTHING: JsonObject = {"state": None, "files": {}}
"""What there is of a run that was never sent."""


class WorkingCopy:
    """A run directory on this machine, and its home."""

    def __init__(self, home: Path, folder: Path):
        self.home = home
        self.folder = folder
        self.holds = False
        """Whether this process holds the folder's lock."""
        self.held = False
        """Whether it ever did."""
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
        if there["state"] is None:
            if known["state"] == BRINGING:
                self._put_aside()  # Its home was deleted since, and this is a part of it.
            return
        if there["state"] == known["state"]:
            return
        here = self._here()
        sent = {x: y["sent"] for x, y in known["files"].items() if x in here}
        if known["state"] != BRINGING and _changed(known["files"], here):
            self._put_aside()
            sent = {}
        # Until all is there.
        write_json(self.folder / KNOWN, NOTHING | {"state": BRINGING})
        while True:
            problem = self._bring_state(there, sent)
            before, there = there, self._there()
            if there["state"] is None or (problem and there["state"] == before["state"]):
                raise problem or RunError(f"{self.home} has been deleted while it was brought")
            # A job that saves meanwhile replaces and removes files of the state that was read.
            if there["state"] == before["state"]:
                break
        here = self._here()
        files = {x: {"sent": sent[x], "stamp": here[x]} for x in there["files"]}
        write_json(self.folder / KNOWN, {"state": there["state"], "files": files})

    def _bring_state(self, there: JsonObject, sent: dict[str, str]) -> RunError | None:
        """Bring the files of a state that are not in `sent`, and add them; the error of the first
        that cannot be brought.
        """
        wanted = there["files"]
        for name in self._here().keys() - wanted.keys():
            (self.folder / name).unlink()
            _remove_empty((self.folder / name).parent, self.folder)
        missing = sorted(x for x in wanted if sent.get(x) != wanted[x]["sent"])
        log_info(f"{self.home}: bringing {len(missing)} of {len(wanted)} files to {self.folder}")
        with Progress("bring", len(missing)) as progress:
            for number, name in enumerate(missing, 1):
                try:
                    self._tried(partial(self._bring_one, name, wanted[name]), name)
                except RunError as error:
                    return error
                sent[name] = wanted[name]["sent"]
                progress.update(number)
        return None

    def take_home(self) -> None:
        """Send what has changed since it was sent last.

        What another process leaves in the folder of a job, that sends; and in a run that is not
        finished and held elsewhere perhaps, it stays here.

        Raises:
            RunError: the home cannot be reached, or another job has changed it.
        """
        with self._alone():
            if self.holds or not self._in_use():
                self._take_home()

    def _take_home(self) -> None:
        began = time.monotonic()
        known, here = self._known(), self._here()
        stamps = {x: y["stamp"] for x, y in known["files"].items()}
        if known["state"] == BRINGING or stamps == here:
            return
        there = self._there()
        if there["state"] is None:
            known = NOTHING  # There is no home yet, or none any more.
        moved = there["state"] != known["state"]
        if not self.held and (moved or FINISHED not in there["files"]):
            log_info(
                f"{self.home}: a job may be working on it, so what this command has written into "
                f"the run stays in {self.folder}"
            )
            return
        if moved:
            raise self._another()
        changed = _changed(known["files"], here)
        self._send(changed, here, known["files"], there)
        seconds = time.monotonic() - began
        if seconds > WORTH_A_WORD:
            amount = sum(here[x][0] for x in changed) / 1e6
            log_info(
                f"{self.home}: {len(changed)} files ({amount:,.0f} MB) sent in {seconds:.0f} s"
            )

    def _another(self) -> RunError:
        return RunError(
            f"{self.home} has been changed by another job since this one began; see that only one "
            f"works on it, then start the same command again: it goes on from there, and puts "
            f"{self.folder} aside"
        )

    def _send(
        self,
        changed: set[str],
        here: dict[str, list[int]],
        before: JsonObject,
        there: JsonObject,
    ) -> None:
        held, state = there["files"], secrets.token_hex(8)
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
        # What the state at home names must not be overwritten yet.
        aside = {x: f"{x}.{self._sender()}-{there['state']}" for x in changed if x in held}
        sending = self.folder / SENDING
        rubbish |= {*read_json(sending)} if sending.is_file() else set()
        write_json(sending, sorted(rubbish | {aside.get(x, x) for x in changed}))
        # What says that something is finished goes last.
        for name in sorted(changed, key=lambda x: (x.endswith("DONE.json"), x)):
            self._send_one(name, aside.get(name, name))
        at |= aside
        self._tell(there["state"], state, files, at, rubbish)
        sending.unlink()
        if at:
            # Now they can take their own names, under which they are easier to find.
            for name in sorted(at):
                self._send_one(name, name)
            rubbish |= {*at.values()}
            self._tell(state, f"{state}-2", files, {}, rubbish)
            state = f"{state}-2"
        for name in sorted(rubbish - files.keys()):
            self._tried(partial((self.home / name).unlink, missing_ok=True), name)
        self._cleaned = state

    def _sender(self) -> str:
        """Another for each folder of each machine, so that two jobs that do not know of each other
        do not take each other's files; the same again for who tries again, and leaves nothing.
        """
        where = f"{socket.gethostname()}:{self.folder.absolute()}"
        return hashlib.sha256(where.encode()).hexdigest()[:8]

    def _send_one(self, name: str, to: str) -> None:
        self._tried(partial(_copy, self.folder / name, self.home / to), to)

    def _tell(
        self,
        before: str | None,
        state: str,
        files: JsonObject,
        at: dict[str, str],
        rubbish: set[str],
    ) -> None:
        """Make a state the one at home, behind the one of which it was made."""
        sent = {
            x: {"sent": y["sent"], "size": y["stamp"][0]} | ({"at": at[x]} if x in at else {})
            for x, y in files.items()
        }
        if self._there()["state"] != before:
            raise self._another()
        write_json(self.folder / NEXT, {"state": state, "files": files})
        note = {"state": state, "files": sent, "rubbish": sorted(rubbish)}
        path = write_json(self.folder / f".{STATE}", note)
        self._tried(partial(_copy, path, self.home / STATE), STATE)
        os.replace(self.folder / NEXT, self.folder / KNOWN)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this machine brings or sends."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = self.folder.with_name(f".{self.folder.name}{LOCK}")
        words = f"{self.home}: another process brings or sends it; waiting"
        with locked(path, waiting=partial(log_info, words)):
            yield

    def _in_use(self) -> bool:
        """Whether a job holds the folder, as `training.lineage.Run` does."""
        path = self.folder / LOCK
        if not path.is_file():
            return False
        with path.open("a") as lock:
            return not take_lock(lock)

    def _put_aside(self) -> None:
        """Move what was never sent to where it is not lost; nothing is here then."""
        aside = first_unused(lambda n: self.folder.with_name(f"{self.folder.name}.unsent-{n}"))
        self.folder.rename(aside)
        log_info(
            f"warning: {self.home} was changed from elsewhere, and {self.folder} holds what was "
            f"never sent there; that is moved to {aside}"
        )

    def _there(self) -> JsonObject:
        """The state at home."""
        path = self.home / STATE

        def read() -> JsonObject:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else NOTHING

        return self._tried(read, STATE)

    def _known(self) -> JsonObject:
        path, coming = self.folder / KNOWN, self.folder / NEXT
        if coming.is_file():
            # Cut off in `_tell`, before or behind the moment from which the state counts.
            if self._there()["state"] == read_json(coming)["state"]:
                os.replace(coming, path)
            coming.unlink(missing_ok=True)
        return read_json(path) if path.is_file() else NOTHING

    def _here(self) -> dict[str, list[int]]:
        """Size and time of change, in ns, of each file that counts."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not _passing(name):
                status = path.stat()
                found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def _bring_one(self, name: str, wanted: JsonObject) -> None:
        source, size = self.home / wanted.get("at", name), wanted["size"]
        with atomic_path(self.folder / name) as temporary:
            _copy(source, temporary)
            # A log is sent before the state that names its size, and may be longer.
            if temporary.stat().st_size < size:
                raise OSError(f"{source} has fewer than the {size} bytes that were sent")

    def _tried(self, work: Callable[[], T], name: str) -> T:
        """Do it, again after a while where the network fails."""
        number = 0
        while True:
            number += 1
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


def _changed(before: JsonObject, here: dict[str, list[int]]) -> set[str]:
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
