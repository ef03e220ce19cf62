"""Folders that only this user can write, for files that are believed as they are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from afmrl_jax.errors import AfmrlError
from afmrl_jax.runtime.files import user_cache


def distrust(folder: Path, content: str) -> str | None:
    """Why a folder is not to be used, and what to do; None if only this user can write it.

    A missing folder is made for the user alone.

    Args:
        folder: on this machine.
        content: what it holds, as in "programs".
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        return f"it cannot be made ({error.strerror}); make it, or its parent writable"
    if not stat.S_ISDIR(found.st_mode):
        return "it is a link, and could be made to lead elsewhere; put a folder there"
    if found.st_uid != os.geteuid():
        return f"it belongs to another user, who could put {content} there; remove it"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"other users may write it, and could put {content} there; remove it, and it is made "
            "again for you alone"
        )
    return None


def private_cache(
    name: str, variable: str, *, kept: str, content: str, error: type[AfmrlError]
) -> Path:
    """A folder of the user's cache that only this user can write.

    Args:
        name: of the folder.
        variable: environment variable with another folder to use.
        kept: what is kept there, as in "the marketplace".
        content: as of `distrust`.
        error: what is raised.

    Raises:
        AfmrlError: the folder is not to be trusted, or cannot be made.
    """
    folder = Path(os.environ.get(variable) or user_cache() / name)
    reason = distrust(folder, content)
    if reason is not None:
        raise error(
            f"{kept} cannot be kept in {folder}: {reason}; or set {variable} to a folder that only "
            "you can write"
        )
    return folder
