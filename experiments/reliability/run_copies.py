"""Runs of which only the first stages are finished, for experiments that do a stage anew."""

from __future__ import annotations

import shutil
from pathlib import Path


def finished(run: Path, stage: str) -> bool:
    """Whether a stage is."""
    return (run / stage / "DONE.json").is_file()


def copy_up_to(whole: Path, run: Path, stage: str) -> None:
    """A run in which everything before `stage` is finished and nothing else was begun."""
    shutil.rmtree(run, ignore_errors=True)
    begun = (whole / stage / "inputs.json").stat().st_mtime
    for folder in whole.iterdir():
        done = folder / "DONE.json"
        if done.is_file() and done.stat().st_mtime <= begun:
            shutil.copytree(folder, run / folder.name)
    shutil.copy(whole / "config.json", run / "config.json")
