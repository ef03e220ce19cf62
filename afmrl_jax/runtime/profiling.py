"""A trace of some steps of a stage, as XProf and TensorBoard's profile plugin show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import PyTree

PROFILE = "profile"
"""Folder of the traces in a stage's folder."""
WARM = 2
"""Steps of a process that compile, and are not traced where there are enough others."""


class StepTrace:
    """Traces a span of steps; to be told of each step.

    Args:
        folder: of the stage.
        count: how many steps; 0 traces none.
        begin: the first step of this process.
        end: the step that the stage ends before.
    """

    def __init__(self, folder: Path, count: int, begin: int, end: int):
        self._folder = folder / PROFILE
        self._first = begin + min(WARM, max(end - begin - count, 0))
        self._last = self._first + count - 1
        self._name = folder.name
        self._running = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The length of a step, which has a name in the trace."""
        if not self._first <= number <= self._last:
            yield
            return
        if not self._running:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation(self._name, step_num=number):
            yield

    def stepped(self, number: int, state: PyTree) -> None:
        """End the trace after its last step, once the devices have done it."""
        if self._running and number >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write the trace, if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log_info(f"{self._name}: trace of the steps from {self._first} on in {self._folder}")
