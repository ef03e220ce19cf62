"""How long calls take."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax


def seconds_of_calls(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of some calls, after one that is not timed; each is waited for."""
    jax.block_until_ready(call())
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        samples.append(time.perf_counter() - began)
    return samples
