"""Memory that threads share."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LARGE = 1 << 26


class MemoryBudget:
    """Bytes that threads share; who needs more than is left waits for the others.

    Args:
        total: bytes; nobody may ask for more.
    """

    def __init__(self, total: int):
        self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes; they count as used until the block ends."""
        with self._changed:
            self._changed.wait_for(lambda: size <= self._free)
            self._free -= size
        try:
            yield
        finally:
            if size > _LARGE:
                _give_back()
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _give_back() -> None:
    """Return freed memory to the system; glibc would keep it for the thread that freed it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
