"""How long calls take."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax


def seconds_of_calls(call: Callable[[], object], repeats: int, queued: int = 1) -> list[float]:
    """Seconds of a call, measured some times after one that is not timed.

    Args:
        call: starts the work; what it returns is waited for.
        repeats: number of samples.
        queued: calls that are started before the last is waited for, of whose time a sample is the
            mean. On a GPU, starting a call and hearing of its end takes a third of a millisecond:
            more than some kernels, and work that is queued does not wait for it.
    """
    jax.block_until_ready(call())
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(queued - 1):
            call()
        # A device works through its calls in order.
        jax.block_until_ready(call())
        samples.append((time.perf_counter() - began) / queued)
    return samples
