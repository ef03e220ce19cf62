"""Start and end of every command: quiet libraries, a compile cache, one-line errors."""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from afmrl_jax.errors import AfmrlError
from afmrl_jax.runtime.compilation import compile_quickly, compiling, keep_programs
from afmrl_jax.runtime.distributed import (
    ClusterConfig,
    barrier,
    connect,
    is_multiprocess,
    lost_after,
)
from afmrl_jax.runtime.files import is_disk_full, unwritable, user_cache
from afmrl_jax.runtime.object_store import keep_all, working_copy, working_folder
from afmrl_jax.runtime.preemption import STATUS, Preempted, watch
from afmrl_jax.runtime.terminal import printable_lines

LOST = ("Gloo", "gloo", "Connection", "UNAVAILABLE", "heartbeat", "NCCL")
"""Words in errors caused by a lost process."""
ECHOES = ("Event loop is closed", "handle is closed")
"""What threads of Orbax and tensorboardX raise after the main one has met a full disk."""
UNREAD = 141
"""Exit status as if SIGPIPE had ended the process."""
CACHE = ".jax_cache"
"""Folder of compiled programs next to the run directories."""


def set_up() -> None:
    """Prepare the process of a command: SIGTERM, and a compile cache in the user's cache folder.

    See `open_run`.
    """
    _prepare(None)
    keep_programs(user_cache())


def open_run(run: Path, cluster: ClusterConfig | None = None) -> Path:
    """Prepare the process of a command that works on a run directory.

    Compiled programs are kept next to it, so that a resumed or repeated run does not recompile.
    JAX_COMPILATION_CACHE_DIR chooses another place; an empty value disables the cache. A folder
    that others can write is not used: see `keep_programs`.

    Args:
        run: the run directory, or its home in object storage (`object_store`).
        cluster: how the processes of the job find each other.

    Returns:
        The folder to work in.
    """
    _prepare(cluster)
    # Before anything else, because communication between processes is compiled too.
    keep_programs(working_folder(run).absolute().parent / CACHE)
    return working_copy(run)


def _prepare(cluster: ClusterConfig | None) -> None:
    logging.getLogger("absl").setLevel(logging.WARNING)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_of_thread
    compile_quickly()
    connect(cluster)
    watch()
    compiling()  # Listens from now on.


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log is of anything but a full disk.

    Orbax's threads log their tracebacks of it, one an array, before `reported` says it in a line.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not is_disk_full(error)


def _print_unraisable(unraised: sys.UnraisableHookArgs) -> None:
    """Print an error that nobody can catch, unless it only repeats that the disk is full.

    Orbax closes its event loop at the first array that cannot be written; TensorStore's threads
    tell the closed loop of each other array, maybe after the line of `reported`. tensorboardX
    tries to write what is left when the process ends.
    """
    if str(unraised.exc_value) not in ECHOES and not is_disk_full(unraised.exc_value):
        sys.__unraisablehook__(unraised)


def _print_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Print an error that ended a thread, unless it is an echo.

    A full disk itself is printed: who writes in a thread of its own may be the only one to meet it.
    """
    if str(ended.exc_value) not in ECHOES:
        threading.__excepthook__(ended)


@contextmanager
def reported() -> Iterator[None]:
    """Turn user errors into one line on stderr and exit status 1.

    Errors of the program itself keep their traceback. Status 75 means that SIGTERM ended the work
    and the same command resumes it; 130 means that Ctrl-C ended it; 141 that whoever reads its
    output has closed it, such as `head`.
    """
    try:
        try:
            yield
            print(end="", flush=True)
        except Preempted:
            _keep_together()
            raise
        except (AfmrlError, KeyboardInterrupt, BrokenPipeError):
            # Files that explain the error, such as the offending batch; the error matters more.
            with suppress(Exception):
                keep_all()
            raise
        _keep_together()
    except AfmrlError as error:
        # It may repeat what a catalogue or a file of a stranger says.
        _end(printable_lines(f"error: {error}"), 1)
    except KeyboardInterrupt:
        _end("interrupted; run the same command to resume from the last checkpoint", 130)
    except Preempted:
        # All processes end here together.
        print("stopped by SIGTERM; run the same command to resume", file=sys.stderr)
        sys.exit(STATUS)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            sys.exit(UNREAD)
        if is_disk_full(error):
            _end(
                f"error: no space left on the disk ({error}); free some space and start the same "
                "command again: finished work is kept and continued",
                1,
            )
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            _end(f"error: {unwritable(error.filename or 'a file', error)}", 1)
        if not is_multiprocess():
            raise
        traceback.print_exc()
        _end(_told(error), 1)


def _is_unread() -> bool:
    """Whether nobody reads the standard output any more; what is left of it is then dropped."""
    output = select.poll()
    with suppress(OSError, ValueError):  # It is no file.
        output.register(sys.stdout, 0)
    if not output.poll(0):
        return False
    # Python would write it once more at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _keep_together() -> None:
    """Send changes to homes in object storage. All processes wait: once the others have exited, JAX
    would end the first one after five minutes.
    """
    keep_all()
    barrier("what was done is at home")


def _told(error: Exception) -> str:
    """Message for an error in one of several processes."""
    if not any(word in str(error) for word in LOST):
        return "error: see above"
    # The coordinator learns which process is lost once it has been silent for long enough, and
    # then ends this process with a message that names it.
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
    """Print why, and exit; one of several processes exits without waiting for the others."""
    who = f"process {jax.process_index()}: " if is_multiprocess() else ""
    print(who + message, file=sys.stderr, flush=True)
    if is_multiprocess():
        # An orderly exit would wait for processes that wait for this one.
        os._exit(status)
    sys.exit(status)
