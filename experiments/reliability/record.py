"""Results of campaigns that fork: written by a process that may start JAX."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path

from afmrl_jax.errors import RunError
from afmrl_jax.performance.record import write_record
from afmrl_jax.types import JsonObject


def write_record_aside(
    path: Path, bench: str, figures: Mapping[str, float], details: Sequence[JsonObject]
) -> None:
    """Write what `write_record` does in a process of its own.

    A record names the device, which starts JAX and its threads; what is forked of a process with
    threads may wait for ever for a lock that one of them held.

    Raises:
        RunError: it could not be written.
    """
    arguments = (path, bench, figures, details)
    process = multiprocessing.get_context("fork").Process(target=write_record, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RunError(f"{path} could not be written; see above")
