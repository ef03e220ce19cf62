"""Run directories whose home is object storage (gs://, s3://, az://).

A run maps files into memory, appends to logs and renames folders, which object storage cannot do.
So it is worked on in a folder of this machine, its working copy, and its home gets what has changed
whenever something is finished: a checkpoint, a stage, the command. On a machine without the
working copy it is brought from the home first. A run at home is therefore always one that could
have been killed here at that moment: nothing that its state names is overwritten before the next
state is there.
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
        copy = _COPIES.setdefault(folder.absolute(), WorkingCopy(resolve_path(run), folder))
        run_on_first(copy.bring, f"bringing {copy.home}")
    return folder


def hold(folder: Path, held: bool) -> None:
    """Say that this process holds the lock of a run directory (`LOCK`), or no longer.

    A run's home is changed by the job that holds its working copy; once a run is finished, also by
    others.
    """
    copy = _COPIES.get(folder.absolute())
    if copy is not None:
        copy.holds, copy.held = held, copy.held or held


def keep(path: Path) -> None:
    """Take home what has changed in the working copy that `path` lies in, if it lies in one.

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
