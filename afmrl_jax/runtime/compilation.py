"""Time spent compiling, and the cache on disk that avoids it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import jax
import jaxlib
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from afmrl_jax.runtime.files import is_local
from afmrl_jax.runtime.private_folder import distrust
from afmrl_jax.runtime.progress import log_info

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
COMPILED = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
QUICK = {"xla_cpu_use_fusion_emitters": "false", "xla_backend_optimization_level": "1"}
"""Flags of `compile_quickly`."""
TRIED = "0.10."
"""The versions of jaxlib that they were tried with."""


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


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Disable the compile cache inside: what compiling takes or writes is wanted."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX looks at the setting once, when the process first compiles, and again after this.
    reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def compile_quickly() -> None:
    """Let XLA spend less time on programs for CPUs; to be called before it compiles any.

    LLVM takes most of that time where layers are few. Without XLA's newer emitters of fused
    operations and without LLVM's last passes it has less to do (`afmrl bench models --parts
    compile`), and a step runs no slower: products, which a library computes, take most of it.

    Flags that the user's XLA_FLAGS name stay as they are. Nothing is changed where an accelerator
    may be found, because the second flag is for its programs, too; nor with another version of
    XLA, which ends the process if it does not know a flag.
    """
    if not jaxlib.__version__.startswith(TRIED) or not _only_cpus(
        jax.config.values["jax_platforms"]
    ):
        return
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"--{name}={value}" for name, value in QUICK.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()


def _only_cpus(wanted: str | None) -> bool:
    """Whether JAX has no other backend than its own for CPUs, or is to use no other."""
    if wanted:
        return wanted == "cpu"
    return not any(find_spec(x) for x in ("jax_plugins", "libtpu")) and not entry_points(
        group="jax_plugins"
    )


def keep_programs(default: Path) -> None:
    """Keep compiled programs in a folder, or in that of JAX_COMPILATION_CACHE_DIR.

    They are machine code that is executed as read. So a folder that others may write is not used,
    and a warning says so; nor is one that cannot be made. A missing one is made for the user alone.
    With an empty variable nothing is kept.
    """
    text = os.environ.get(CACHE_VARIABLE, str(default))
    if not text:
        return
    reason = distrust(Path(text), "programs") if is_local(Path(text)) else None
    if reason is not None:
        log_info(
            f"warning: compiled programs are not kept in {text}, so every start compiles anew: "
            f"{reason}; or set {CACHE_VARIABLE} to a folder that only you can write, or to nothing"
        )
    # JAX knows the variable too.
    jax.config.update("jax_compilation_cache_dir", text if reason is None else None)
    # Small programs too: a start has dozens, and compiling them takes a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
