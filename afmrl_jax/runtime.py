"""What every command does first and last: quiet libraries, a compile cache, errors in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from afmrl_jax.errors import AfmrlError
from afmrl_jax.files import is_disk_full

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def set_up() -> None:
    """Prepare the process of a command.

    Compiled programs are kept below the user's cache folder, so that a resumed or repeated run
    does not compile again; JAX_COMPILATION_CACHE_DIR chooses another place, an empty value none.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afmrl_jax"
    folder = os.environ.get(CACHE_VARIABLE, str(default))
    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the user's errors into one line on stderr and exit status 1.

    Errors of the program itself keep their trace.
    """
    try:
        yield
    except AfmrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(
            f"error: no space left on the disk ({error}); free some space and start the same "
            "command again: finished work is kept and continued",
            file=sys.stderr,
        )
        sys.exit(1)
