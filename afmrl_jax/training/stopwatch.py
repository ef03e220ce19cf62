"""How long steps take, and how much of that the data does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from afmrl_jax.runtime.compilation import compiling
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import AnyArray


class Stopwatch:
    """Seconds a step, and how many of them the data took, since the last line of the log.

    Steps are dispatched ahead of the device, so only a span that ends with reading metrics tells
    how long they took. The first step is waited for, and told apart with what was compiled for it.
    """

    def __init__(self, step: int, name: str):
        self._name = name
        self._compiled = compiling()
        self._first: dict[str, float] = {}
        self._fresh = True
        self._start(step)

    def _start(self, step: int) -> None:
        self._step = step
        self._began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for the data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def stepped(self, metrics: Mapping[str, AnyArray]) -> None:
        """After every step; the first one is waited for."""
        if not self._fresh:
            return
        self._fresh = False
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - self._began
        found = compiling().since(self._compiled)
        log_info(f"{self._name}: first step after {seconds:.1f} s ({found})")
        self._first = {
            "first_step_seconds": round(seconds, 3),
            "compile_seconds": round(found.seconds, 3),
            "compile_cache_hits": found.hits,
            "compile_programs": found.programs,
        }

    def lap(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last lap, by name; `step` are done."""
        steps, seconds = step - self._step, time.perf_counter() - self._began
        found = {"seconds_per_step": seconds / steps, "data_wait_share": self._waited / seconds}
        first, self._first = self._first, {}
        self._start(step)
        return {name: round(value, 5) for name, value in found.items()} | first
