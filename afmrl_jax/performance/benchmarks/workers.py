"""Persistent processes, one per side, so that each is idle while the other works.

In one process the thread pools of both libraries would spin while waiting and take each other's
cores.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        side = make(*arguments)
        pipe.send(("ready", None))
        while (asked := pipe.recv()) is not None:
            method, values = asked
            pipe.send(("done", getattr(side, method)(*values)))
    except EOFError:
        return
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


class Worker:
    """An object in a separate process; its methods can be called.

    Args:
        make: importable function that builds the object there.
        arguments: arguments of `make`.
    """

    def __init__(self, make: Callable[..., object], *arguments: object):
        # A forked child would inherit the threads of JAX in an undefined state.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *values: object) -> Any:
        """Call a method, and return its result.

        Raises:
            RuntimeError: the method raised; the message contains its traceback.
        """
        self._pipe.send((method, values))
        return self._receive()

    def _receive(self) -> Any:
        try:
            state, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"a benchmark process died (exit status {code})") from None
        if state == "failed":
            raise RuntimeError(f"a benchmark process failed:\n{value}")
        return value

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._pipe.send(None)
            self._process.join(10)
        self._process.terminate()
        self._process.join()


def restrict(cores: list[int]) -> None:
    """Restrict this process, and the thread pools it will create, to some cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
