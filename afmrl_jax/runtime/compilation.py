"""Time spent compiling, and how often the cache on disk avoids it."""

from __future__ import annotations

from dataclasses import dataclass

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"


@dataclass
class Compiling:
    """Counts of this process since it began listening."""

    seconds: float = 0.0
    """Spent in the compiler, or reading the cache instead."""
    programs: int = 0
    hits: int = 0
    """Programs that came from the cache."""

    def since(self, before: Compiling) -> Compiling:
        """The increase since `before`."""
        return Compiling(
            self.seconds - before.seconds, self.programs - before.programs, self.hits - before.hits
        )

    def copy(self) -> Compiling:
        """A copy of the current counts."""
        return Compiling(self.seconds, self.programs, self.hits)

    def __str__(self) -> str:
        plural = "" if self.programs == 1 else "s"
        return (
            f"{self.seconds:.1f} s compiling, {self.programs} program{plural}, {self.hits} from "
            "the cache"
        )


_total = Compiling()
_listening = False


def compiling() -> Compiling:
    """The counts so far; the first call starts listening."""
    global _listening
    if not _listening:
        _listening = True
        jax.monitoring.register_event_duration_secs_listener(_took)
        jax.monitoring.register_event_listener(_happened)
    return _total.copy()


def _took(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED:
        _total.seconds += duration_secs
        _total.programs += 1


def _happened(event: str, **_: str | int) -> None:
    if event == HIT:
        _total.hits += 1
