"""Work of many waits in a thread of its own, which never keeps the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 1.0
"""Seconds that interrupted work has to close what it opened."""
AWAKE = 0.2
"""Seconds between two looks for signals."""


class _Loop(asyncio.SelectorEventLoop):
    """Runs blocking calls, such as looking up a name, in threads that end with the process.

    Those of an executor are waited for at exit, however long they take.
    """

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        del executor
        outcome: Future[T] = Future()
        # Running from now on: it cannot be cancelled, so that the thread may set its result.
        outcome.set_running_or_notify_cancel()
        threading.Thread(target=_run, args=(outcome, func, *args), daemon=True).start()
        return asyncio.wrap_future(outcome, loop=self)


def _run(outcome: Future[T], function: Callable[..., T], *arguments: Any) -> None:
    try:
        outcome.set_result(function(*arguments))
    except BaseException as error:  # Raised again where the result is awaited.
        outcome.set_exception(error)


def run_in_background(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that runs in a thread of its own; works inside a notebook too.

    A signal that raises (Ctrl-C, SIGTERM) is raised at once here: the coroutine is cancelled, and
    left behind if it has not ended after `GRACE` seconds.
    """
    loop, outcome = _Loop(), Future[T]()
    task = loop.create_task(work)

    def run() -> None:
        _run(outcome, loop.run_until_complete, task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        # The system may hand a signal to any thread, but Python acts on it in this one, once it is
        # awake.
        while not outcome.done():
            wait([outcome], timeout=AWAKE)
        return outcome.result()
    finally:
        if not outcome.done():
            loop.call_soon_threadsafe(task.cancel)
        thread.join(GRACE)
