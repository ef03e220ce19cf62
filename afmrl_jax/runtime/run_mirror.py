"""A local run directory whose home is object storage, and the transfers between the two."""

from __future__ import annotations

import hashlib
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
    open_lock,
    take_lock,
    write_json,
)
from afmrl_jax.runtime.home_state import (
    BRINGING,
    STATE,
    HomeState,
    KeptFile,
    KnownState,
    SentFile,
    is_inside,
    parse_home,
    read_if_there,
    read_known,
    read_names,
    require_no_link_out,
    write_known,
)
from afmrl_jax.runtime.json_files import open_regular
from afmrl_jax.runtime.progress import Progress, log_info

T = TypeVar("T")
KNOWN = ".home.json"
"""In a working copy: which of its files are at home, and as of which state."""
NEXT = ".home.next.json"
"""In a working copy: the next `KNOWN`, valid once the state being sent is at home."""
SENDING = ".home.sending.json"
"""In a working copy: files that may be at home although no state there names them."""
LOCK = ".lock"
"""In a run directory: held by the job that works on it."""
FINISHED = "evaluate/DONE.json"
"""No job works on a run that has this file."""
TRIES = 4
WORTH_A_WORD = 10.0
"""Seconds of sending from which it is logged."""
BLOCK = 1 << 24


class WorkingCopy:
    """A run directory on this machine, and its home."""

    def __init__(self, home: Path, folder: Path):
        self.home = home
        self.folder = folder
        self.holds = False
        """Whether this process holds the folder's lock."""
        self.held = False
        """Whether it ever held it."""
        self._cleaned: str | None = None
        """The state at home whose rubbish has been removed."""

    def bring(self) -> None:
        """Make this folder equal to its home, unless it already is, or is ahead of it.

        If both have changed, home wins, and the folder is moved aside. A folder that a job on this
        machine is working on is not changed.
        """
        with self._alone():
            if not self._in_use():
                self._bring()

    def _bring(self) -> None:
        known, there = self._known(), self._there()
        if there.state is None:
            if known.state == BRINGING:
                self._put_aside()  # Its home has been deleted, and this is only a part of it.
            return
        if there.state == known.state:
            return
        here = self._here()
        sent = {x: y.sent for x, y in known.files.items() if x in here}
        if known.state != BRINGING and _changed(known.files, here):
            self._put_aside()
            sent = {}
        # Until everything is here.
        write_known(self.folder / KNOWN, KnownState(BRINGING))
        while True:
            problem = self._bring_state(there, sent)
            before, there = there, self._there()
            if there.state is None or (problem and there.state == before.state):
                raise problem or RunError(f"{self.home} was deleted while it was being fetched")
            # A job that saves meanwhile replaces and removes files of the state that was read.
            if there.state == before.state:
                break
        here = self._here()
        files = {x: KeptFile(sent[x], here[x]) for x in there.files}
        write_known(self.folder / KNOWN, KnownState(there.state, files))

    def _bring_state(self, there: HomeState, sent: dict[str, str]) -> RunError | None:
        """Fetch the files of a state that are not in `sent`, and add them to it; the error of the
        first that cannot be fetched.
        """
        wanted = there.files
        for name in self._here().keys() - wanted.keys():
            (self.folder / name).unlink()
            _remove_empty((self.folder / name).parent, self.folder)
        missing = sorted(x for x in wanted if sent.get(x) != wanted[x].sent)
        log_info(f"{self.home}: fetching {len(missing)} of {len(wanted)} files to {self.folder}")
        with Progress("fetch", len(missing)) as progress:
            for number, name in enumerate(missing, 1):
                try:
                    self._tried(partial(self._bring_one, name, wanted[name]), name)
                except RunError as error:
                    return error
                sent[name] = wanted[name].sent
                progress.update(number)
        return None

    def take_home(self) -> None:
        """Send what has changed since the last time.

        Files that another process leaves in a job's folder are sent by that job. If the run is not
        finished and may be in use elsewhere, they stay here.

        Raises:
            RunError: the home cannot be reached, or another job has changed it.
        """
        with self._alone():
            if self.holds or not self._in_use():
                self._take_home()

    def _take_home(self) -> None:
        began = time.monotonic()
        known, here = self._known(), self._here()
        stamps = {x: y.stamp for x, y in known.files.items()}
        if known.state == BRINGING or stamps == here:
            return
        there = self._there()
        if there.state is None:
            known = KnownState()  # There is no home yet, or it has been deleted.
        moved = there.state != known.state
        if not self.held and (moved or FINISHED not in there.files):
            log_info(
                f"{self.home}: a job may be working on it, so the files that this command wrote "
                f"into the run stay in {self.folder}"
            )
            return
        if moved:
            raise self._another()
        changed = _changed(known.files, here)
        self._send(changed, here, known.files, there)
        seconds = time.monotonic() - began
        if seconds > WORTH_A_WORD:
            amount = sum(here[x][0] for x in changed) / 1e6
            log_info(
                f"{self.home}: {len(changed)} files ({amount:,.0f} MB) sent in {seconds:.0f} s"
            )

    def _another(self) -> RunError:
        return RunError(
            f"{self.home} has been changed by another job since this one began; make sure that "
            f"only one job works on it, then run the same command again: it resumes from there, "
            f"and moves {self.folder} aside"
        )

    def _send(
        self,
        changed: set[str],
        here: dict[str, tuple[int, int]],
        before: dict[str, KeptFile],
        there: HomeState,
    ) -> None:
        held, state = there.files, secrets.token_hex(8)
        files = {
            x: KeptFile(state if x in changed else before[x].sent, stamp)
            for x, stamp in here.items()
        }
        rubbish = {x for x in held if x not in here}
        if self._cleaned != there.state:
            rubbish |= {*there.rubbish}
        at = {}
        for name, about in held.items():
            if about.at is not None and name in here and name not in changed:
                at[name] = about.at
            elif about.at is not None:
                rubbish.add(about.at)
        # What the state at home names must not be overwritten yet.
        aside = {x: f"{x}.{self._sender()}-{there.state}" for x in changed if x in held}
        sending = self.folder / SENDING
        rubbish |= read_names(sending) if sending.is_file() else set()
        write_json(sending, sorted(rubbish | {aside.get(x, x) for x in changed}))
        # Files that mark something as finished go last.
        for name in sorted(changed, key=lambda x: (x.endswith("DONE.json"), x)):
            self._send_one(name, aside.get(name, name))
        at |= aside
        self._tell(there.state, state, files, at, rubbish)
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
        """An id of this folder on this machine, so that two jobs that do not know of each other
        do not overwrite each other's files; the same on a retry, which then leaves nothing behind.
        """
        where = f"{socket.gethostname()}:{self.folder.absolute()}"
        return hashlib.sha256(where.encode()).hexdigest()[:8]

    def _send_one(self, name: str, to: str) -> None:
        self._tried(partial(_copy, self.folder / name, self.home / to), to)

    def _tell(
        self,
        before: str | None,
        state: str,
        files: dict[str, KeptFile],
        at: dict[str, str],
        rubbish: set[str],
    ) -> None:
        """Make a state the one at home, as the successor of `before`."""
        sent = {
            x: {"sent": y.sent, "size": y.stamp[0]} | ({"at": at[x]} if x in at else {})
            for x, y in files.items()
        }
        if self._there().state != before:
            raise self._another()
        write_known(self.folder / NEXT, KnownState(state, files))
        note = {"state": state, "files": sent, "rubbish": sorted(rubbish)}
        path = write_json(self.folder / f".{STATE}", note)
        self._tried(partial(_copy, path, self.home / STATE), STATE)
        os.replace(self.folder / NEXT, self.folder / KNOWN)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock against other processes on this machine that fetch or send."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = self.folder.with_name(f".{self.folder.name}{LOCK}")
        words = f"{self.home}: another process is fetching or sending it; waiting"
        with locked(path, waiting=partial(log_info, words)):
            yield

    def _in_use(self) -> bool:
        """Whether a job holds the folder, as `training.run_directory.Run` does."""
        path = self.folder / LOCK
        if not path.exists():
            return False
        with open_lock(path) as lock:
            return not take_lock(lock)

    def _put_aside(self) -> None:
        """Move this folder, with what was never sent, aside so that nothing is lost."""
        aside = first_unused(lambda n: self.folder.with_name(f"{self.folder.name}.unsent-{n}"))
        self.folder.rename(aside)
        log_info(
            f"warning: {self.home} was changed from elsewhere, and {self.folder} holds files that "
            f"were never sent there; they were moved to {aside}"
        )

    def _there(self) -> HomeState:
        """The state at home."""
        path = self.home / STATE
        raw = self._tried(partial(read_if_there, path), STATE)
        return HomeState() if raw is None else parse_home(raw, path)

    def _known(self) -> KnownState:
        path, coming = self.folder / KNOWN, self.folder / NEXT
        if coming.is_file():
            # Interrupted in `_tell`, before or after the moment from which the state counts.
            if self._there().state == read_known(coming).state:
                os.replace(coming, path)
            coming.unlink(missing_ok=True)
        return read_known(path) if path.is_file() else KnownState()

    def _here(self) -> dict[str, tuple[int, int]]:
        """Size and modification time, in ns, of each file that counts."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            # A link could name any file of this machine.
            if path.is_file() and not path.is_symlink() and is_inside(name):
                status = path.stat()
                found[name] = status.st_size, status.st_mtime_ns
        return found

    def _bring_one(self, name: str, wanted: SentFile) -> None:
        source, size = self.home / (wanted.at or name), wanted.size
        require_no_link_out(self.folder / name, self.folder)
        with atomic_path(self.folder / name) as temporary:
            _copy(source, temporary)
            # A log is sent before the state that names its size, and may be longer.
            if temporary.stat().st_size < size:
                raise OSError(f"{source} has fewer than the {size} bytes that were sent")

    def _tried(self, work: Callable[[], T], name: str) -> T:
        """Run `work`, and retry after a while if the network fails."""
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
                        f"{self.home / name} cannot be reached ({error}); the work done so far is "
                        f"in {self.folder}, and the same command resumes from there"
                    ) from error
                time.sleep(2**number)


def _changed(before: dict[str, KeptFile], here: dict[str, tuple[int, int]]) -> set[str]:
    """The files that have changed since they were sent or fetched."""
    return {x for x in here if x not in before or before[x].stamp != here[x]}


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove folders that have become empty: one could be mistaken for a checkpoint."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(source) as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, BLOCK)
