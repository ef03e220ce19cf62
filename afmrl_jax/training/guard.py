"""What stops training by itself: a loss that is no number, one that explodes, a step that hangs."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections import deque
from pathlib import Path
from statistics import median

import jax
import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.parallel.sharding import path_name
from afmrl_jax.runtime.distributed import is_multiprocess
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.types import PyTree

SEEN = 100
"""Steps whose median a loss is held against."""
LEAST = 20
"""Steps before which no loss counts as exploding."""
RUNNING = 3
"""Steps in a row that must lie above the limit."""


class LossGuard:
    """Follows the losses of a stage.

    Args:
        explosion: times the median of the last losses, see `GuardConfig`; None: any is allowed.
    """

    def __init__(self, explosion: float | None):
        self._explosion = explosion
        self._seen: deque[float] = deque(maxlen=SEEN)
        self._high = 0

    def exploded(self, loss: float) -> bool:
        """Whether a loss, and those just before it, lie far above what was usual.

        Example:
            >>> guard = LossGuard(20.0)
            >>> any(guard.exploded(x) for x in [1.0] * 30 + [50.0, 50.0])
            False
            >>> guard.exploded(50.0)
            True
        """
        if self._explosion is None:
            return False
        usual = median(self._seen) if len(self._seen) >= LEAST else float("inf")
        if loss > self._explosion * usual > 0:
            self._high += 1
        else:
            self._high = 0
            self._seen.append(loss)
        return self._high >= RUNNING


def write_batch(folder: Path, step: int, batch: PyTree) -> Path:
    """Keep a batch for a person to look at: a NumPy archive with its arrays by name."""
    path = folder / f"bad_batch_{step:06d}.npz"
    leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
    arrays = {path_name(way): np.asarray(leaf) for way, leaf in leaves}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def stopped(name: str, step: int, why: str, kept: str, batch: Path) -> RunError:
    """The error that ends a stage.

    Args:
        name: of the stage.
        step: steps done before the one that failed.
        why: what is wrong with it.
        kept: where the last good state is.
        batch: file of the batch.
    """
    return RunError(
        f"{name}: {why} in step {step + 1}. {kept}; the batch is in {batch}. The same command "
        "would meet it again: look at the listings of that batch, or choose another --out with a "
        f"lower learning rate or clip_norm (--{name.split('-')[0]}.optimizer.learning-rate)"
    )


class Watchdog:
    """Ends a process of several in which no step has been finished for long.

    All of them wait for the slowest, so one that hangs would hold the job for ever. Each says
    where it stands; the one that stands elsewhere is to blame.
    """

    def __init__(self, name: str, seconds: int):
        self._name = name
        self._seconds = seconds if is_multiprocess() else 0
        self._timer: threading.Timer | None = None
        self._step, self._doing = 0, "starting"

    def doing(self, what: str) -> None:
        """Say what comes next."""
        self._doing = what

    def step(self, step: int) -> None:
        """Say that so many steps are done."""
        self._step = step
        self.close()
        if self._seconds:
            self._timer = threading.Timer(self._seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        print(
            f"error: process {jax.process_index()} of {jax.process_count()}: no step of "
            f"{self._name} was finished for {self._seconds} s (guard.stall_after); it stands "
            f"after step {self._step}, {self._doing}. The process that stands elsewhere holds "
            "the others; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)
