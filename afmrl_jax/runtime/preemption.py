"""SIGTERM: work ends at a step on which all processes agree, and the next start resumes there.

Schedulers send it some time before they take a machine away. With one process the signal is
caught here; with several, JAX catches it on whichever process receives it and notifies the others.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jax.experimental import multihost_utils

from afmrl_jax.runtime.distributed import is_multiprocess

STATUS = 75
"""Exit status of a process that was preempted (EX_TEMPFAIL of sysexits.h: try again later)."""


class Preempted(BaseException):
    """The work was asked to end. Not an `Exception`, so that nothing treats it as a failure."""


class _Notice:
    """What this process knows of a request to end."""

    def __init__(self) -> None:
        self.came = False
        self.deferred = 0
        self.asked = 0

    def received(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        again, self.came = self.came, True
        # A second signal means: do not wait for the end of a step.
        if again or not self.deferred:
            raise Preempted


_notice = _Notice()


def watch() -> None:
    """Catch SIGTERM from now on; to be called after `distributed.connect`."""
    # With several processes JAX's own handler must stay: it notifies the others.
    if not is_multiprocess() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _notice.received)


@contextmanager
def deferred() -> Iterator[None]:
    """Work inside calls `reached` at suitable moments, and is not interrupted elsewhere.

    Raises:
        Preempted: the signal came after the last call of `reached`.
    """
    _notice.deferred += 1
    try:
        yield
    finally:
        _notice.deferred -= 1
    if _notice.came and not _notice.deferred:
        raise Preempted


def reached() -> bool:
    """Whether to save and end here. All processes call this equally often, and get the same answer.

    Nothing else may query JAX for it: JAX counts by the number it is passed, and that is ours.
    """
    if not is_multiprocess():
        return _notice.came
    _notice.asked += 1
    return multihost_utils.reached_preemption_sync_point(_notice.asked)


def heed() -> None:
    """End here if SIGTERM came; for work that keeps nothing but its result.

    Raises:
        Preempted: SIGTERM came.
    """
    if reached():
        raise Preempted
