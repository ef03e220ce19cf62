"""Folders that only this user can write, for files that are believed as they are read."""

from __future__ import annotations

import os
import stat
from pathlib import Path


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
