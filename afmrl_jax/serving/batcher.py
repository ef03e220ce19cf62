"""Work of many requests in batches, on one thread that owns the device."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class Stopped(RuntimeError):
    """The batcher takes no more work."""


@dataclass(eq=False)
class _Job:
    kind: str
    item: Any
    future: Future[Any] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects items of one kind for a few milliseconds, and works on them together.

    Args:
        work: of a kind and some items, their results in the same order.
        most: items of a batch.
        wait: of a kind, the seconds that the oldest item waits for others.
        seen: called with each batch's kind, size and seconds.
    """

    def __init__(
        self,
        work: Callable[[str, list[Any]], Sequence[Any]],
        *,
        most: int,
        wait: Callable[[str], float],
        seen: Callable[[str, int, float], None] = lambda *_: None,
    ):
        self._work, self._most, self._wait, self._seen = work, most, wait, seen
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)
        self._thread.start()

    def submit(self, kind: str, item: Any) -> Future[Any]:
        """Work on an item; one that is cancelled before its turn is dropped.

        Raises:
            Stopped: `close` was called.
        """
        job = _Job(kind, item)
        with self._changed:
            if self._stopping:
                raise Stopped("the service is stopping")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Work on all that was submitted, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while batch := self._next():
            chosen = [x for x in batch if x.future.set_running_or_notify_cancel()]
            if not chosen:
                continue
            began = time.monotonic()
            try:
                found = self._work(chosen[0].kind, [x.item for x in chosen])
            except BaseException as error:  # It belongs to those who wait, and the thread goes on.
                for x in chosen:
                    x.future.set_exception(error)
                continue
            for x, result in zip(chosen, found, strict=True):
                x.future.set_result(result)
            self._seen(chosen[0].kind, len(chosen), time.monotonic() - began)

    def _next(self) -> list[_Job]:
        """The oldest job and others of its kind; empty at the end."""
        with self._changed:
            while not self._jobs:
                if self._stopping:
                    return []
                self._changed.wait()
            kind = self._jobs[0].kind
            until = self._jobs[0].came + self._wait(kind)
            while self._count(kind) < self._most and not self._stopping:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            chosen = [x for x in self._jobs if x.kind == kind][: self._most]
            taken = set(map(id, chosen))
            self._jobs = deque(x for x in self._jobs if id(x) not in taken)
            return chosen

    def _count(self, kind: str) -> int:
        return sum(x.kind == kind for x in self._jobs)
