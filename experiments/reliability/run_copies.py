"""Runs with only the first stages finished, for experiments that run a stage again."""

from __future__ import annotations

import shutil
from pathlib import Path


def finished(run: Path, stage: str) -> bool:
    """Whether a stage is finished."""
    return (run / stage / "DONE.json").is_file()


def copy_up_to(whole: Path, run: Path, stage: str) -> None:
    """Make a run in which everything before `stage` is finished and nothing else has begun."""
    shutil.rmtree(run, ignore_errors=True)
    begun = (whole / stage / "inputs.json").stat().st_mtime
    for folder in whole.iterdir():
        done = folder / "DONE.json"
        if done.is_file() and done.stat().st_mtime <= begun:
            shutil.copytree(folder, run / folder.name)
    shutil.copy(whole / "config.json", run / "config.json")
