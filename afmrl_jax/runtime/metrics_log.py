"""Metrics of a stage: one JSON object per line, and the same for TensorBoard and trackers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from afmrl_jax.runtime.files import disk_full, is_disk_full, is_writer, write_text
from afmrl_jax.runtime.json_files import checked, json_text, read_records
from afmrl_jax.runtime.trackers import BOARD, Tracker
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


REMEDY = "delete the line, or the stage's folder to run it again"


@dataclass(frozen=True)
class _Line:
    step: int


class MetricsLog:
    """Appends to `metrics.jsonl` in a folder, and sends the same to trackers.

    A resumed stage repeats the steps after its checkpoint, so their lines are dropped first: every
    step is in the file once. If another process of the job does the writing, nothing is written.

    Args:
        folder: of the stage.
        resume_step: steps that are done.
        trackers: names, see `parse_trackers`; TensorBoard's files go to `tensorboard/`.
    """

    def __init__(self, folder: Path, resume_step: int = 0, trackers: tuple[str, ...] = (BOARD,)):
        self.path = folder / "metrics.jsonl"
        self._writes = is_writer()
        self._names = trackers
        if not self._writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            # A stage that restarts from scratch writes its step 0 again; one that resumes does not.
            kept = [x for x in read_metrics(self.path) if resume_step and x["step"] <= resume_step]
            write_text(self.path, "".join(json_text(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._begins = resume_step + 1

    @cached_property
    def _board(self) -> SummaryWriter:
        # If torch is installed this imports it, and the first step need not wait for that.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._begins)

    @cached_property
    def _trackers(self) -> list[Tracker]:
        # Opened with the first metrics: a stage that has nothing to do opens no run.
        return [Tracker(x, self.path.parent) for x in self._names if x != BOARD]

    def write(self, step: int, metrics: JsonObject) -> None:
        """Add the metrics of a step, if there are any."""
        if not metrics or not self._writes:
            return
        try:
            self._file.write(json_text({"step": step, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items() if BOARD in self._names else ():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise (disk_full(self.path) if is_disk_full(error) else error) from error
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def close(self) -> None:
        """Flush and close all."""
        if self._writes:
            self._file.close()
            if "_board" in vars(self):
                self._board.close()
            for tracker in self._trackers if "_trackers" in vars(self) else ():
                tracker.close()


def resident_memory() -> dict[str, float]:
    """Resident memory of this process now, as the metric `host_memory_gb`; Linux only."""
    path = Path("/proc/self/statm")
    if not path.is_file():
        return {}
    pages = int(path.read_text(encoding="ascii").split()[1])
    return {"host_memory_gb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 3)}


def read_metrics(path: Path) -> list[JsonObject]:
    """The metrics of each step; from a file that is being written, those of its complete lines.

    A null stands for NaN, which JSON does not have, and is read as one.

    Raises:
        RunError: a whole line is broken; the message names it.
    """
    lines = read_records(path, remedy=REMEDY)
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        checked(_Line, line, where, remedy=REMEDY, nan=True)
        checked(dict[str, float | None], line, where, remedy=REMEDY, nan=True)
    return [{k: math.nan if x is None else x for k, x in line.items()} for line in lines]
