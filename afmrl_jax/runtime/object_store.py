"""Run directories whose home is object storage (gs://, s3://, az://).

A run maps files into memory, appends to logs and renames folders, which object storage cannot do.
So it is worked on in a local folder, its working copy, and changes are sent to its home whenever
something is finished: a checkpoint, a stage, the command. On a machine without the working copy it
is fetched from the home first. The run at home is therefore always in a state in which it could
have been killed here: nothing that its state names is overwritten before the next state is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from afmrl_jax.runtime.distributed import is_first_process, run_on_first
from afmrl_jax.runtime.files import REMOTE, resolve_path, user_cache
from afmrl_jax.runtime.run_mirror import WorkingCopy

WORK = "AFMRL_WORK"
"""Environment variable: the folder of working copies."""

_COPIES: dict[Path, WorkingCopy] = {}


def working_folder(run: Path | str) -> Path:
    """The folder to work in: a local run directory itself, otherwise its working copy.

    Working copies are in `AFMRL_WORK`, or in the user's cache folder.
    """
    remote = REMOTE.fullmatch(os.fspath(run))
    if remote is None:
        return Path(run)
    return Path(os.environ.get(WORK) or user_cache() / "runs") / remote[1] / remote[2]


def working_copy(run: Path | str) -> Path:
    """`working_folder`, updated from the run's home; all processes of a job must call this.

    Raises:
        ConfigError: the packages for such paths are not installed, or the home cannot be reached.
        RunError: the home can no longer be reached.
    """
    folder = working_folder(run)
    if folder != Path(run):
        copy = _COPIES.setdefault(folder.absolute(), WorkingCopy(resolve_path(run), folder))
        run_on_first(copy.bring, f"fetching {copy.home}")
    return folder


def hold(folder: Path, held: bool) -> None:
    """Record that this process holds the lock of a run directory (`LOCK`), or no longer does.

    Only the job that holds its working copy changes a run's home; once a run is finished, others
    may too.
    """
    copy = _COPIES.get(folder.absolute())
    if copy is not None:
        copy.holds, copy.held = held, copy.held or held


def keep(path: Path) -> None:
    """Send home the changes of the working copy that contains `path`, if there is one.

    Raises:
        RunError: the home cannot be reached, or another job has changed it.
    """
    path = path.absolute()
    for folder, copy in _COPIES.items():
        if path.is_relative_to(folder) and is_first_process():
            copy.take_home()


def keep_all() -> None:
    """`keep` for all working copies of this process."""
    for folder in _COPIES:
        keep(folder)
