"""What every command does first and last: quiet libraries, a compile cache, errors in one line."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from afmrl_jax.errors import AfmrlError
from afmrl_jax.runtime.compilation import compiling
from afmrl_jax.runtime.distributed import (
    ClusterConfig,
    barrier,
    connect,
    is_multiprocess,
    lost_after,
)
from afmrl_jax.runtime.files import is_disk_full, user_cache
from afmrl_jax.runtime.object_store import keep_all, working_copy, working_folder
from afmrl_jax.runtime.preemption import STATUS, Preempted, watch

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LOST = ("Gloo", "gloo", "Connection", "UNAVAILABLE", "heartbeat", "NCCL")
"""Words of errors that come of a process that is gone."""
CACHE = ".jax_cache"
"""Folder of compiled programs beside the run directories."""


def set_up() -> None:
    """Prepare the process of a command: SIGTERM, and compiled programs in the user's cache folder.

    See `open_run`.
    """
    _prepare(None)
    _keep_programs(user_cache())


def open_run(run: Path, cluster: ClusterConfig | None = None) -> Path:
    """Prepare the process of a command that works on a run directory.

    Compiled programs are kept beside it, so that a resumed or repeated run does not compile again.
    JAX_COMPILATION_CACHE_DIR chooses another place, an empty value none. A cache holds machine
    code that is executed as it is read, so it must not lie where strangers may write.

    Args:
        run: the run directory; its home in object storage is possible too (`storage`).
        cluster: how the processes of the job find each other.

    Returns:
        The folder to work in.
    """
    _prepare(cluster)
    # First of all, for what several processes say to each other is compiled too.
    _keep_programs(working_folder(run).absolute().parent / CACHE)
    return working_copy(run)


def _prepare(cluster: ClusterConfig | None) -> None:
    logging.getLogger("absl").setLevel(logging.WARNING)
    connect(cluster)
    watch()
    compiling()  # Listens from now on.


def _keep_programs(default: Path) -> None:
    folder = os.environ.get(CACHE_VARIABLE, str(default))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        # Small programs too: a start has dozens, and compiling them takes a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the user's errors into one line on stderr and exit status 1.

    Errors of the program itself keep their trace. Status 75 says that the work was asked to end
    by SIGTERM and resumes with the same command, 130 that Ctrl-C ended it.
    """
    try:
        try:
            yield
        except Preempted:
            _keep_together()
            raise
        except (AfmrlError, KeyboardInterrupt):
            # The batch that was to blame, and the like; the error itself matters more.
            with suppress(Exception):
                keep_all()
            raise
        _keep_together()
    except AfmrlError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; run the same command to resume from the last checkpoint", 130)
    except Preempted:
        # All processes end here together.
        print("stopped by SIGTERM; run the same command to resume", file=sys.stderr)
        sys.exit(STATUS)
    except Exception as error:
        if is_disk_full(error):
            _end(
                f"error: no space left on the disk ({error}); free some space and start the same "
                "command again: finished work is kept and continued",
                1,
            )
        if not is_multiprocess():
            raise
        traceback.print_exc()
        _end(_told(error), 1)


def _keep_together() -> None:
    """Send what has a home elsewhere. All wait: where the others have ended, JAX ends the first
    process during it after five minutes.
    """
    keep_all()
    barrier("what was done is at home")


def _told(error: Exception) -> str:
    """What to say of an error in one of several processes."""
    if not any(word in str(error) for word in LOST):
        return "error: see above"
    # The coordinator knows which one is silent as soon as it has been so for long enough, and
    # then ends this process with its name.
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} lost another one. JAX says "
        "next which: unhealthy tasks are the processes of these numbers, the leader task is "
        "process 0. Run the same command to resume from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(2 * lost_after())
    return "error: the coordinator knows of no lost process; see above"


def _end(message: str, status: int) -> None:
    """Say why, and end; one of several processes ends at once, without waiting for the others."""
    who = f"process {jax.process_index()}: " if is_multiprocess() else ""
    print(who + message, file=sys.stderr, flush=True)
    if is_multiprocess():
        # An orderly exit would wait for processes that wait for this one.
        os._exit(status)
    sys.exit(status)
