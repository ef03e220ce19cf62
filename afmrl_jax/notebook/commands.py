"""Commands in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.distributed import MODE

LAST_LINES = 12
"""Lines of a failed command's output that its error repeats."""


def environment() -> dict[str, str]:
    """Environment of a process that is the only one of its job, whatever launched the notebook."""
    return {**os.environ, MODE: "off"}


def failure(command: Sequence[str], status: int, output: str) -> RunError:
    """The error for a command that ended with a nonzero status."""
    said = "\n".join(output.strip().splitlines()[-LAST_LINES:])
    return RunError(f"`{' '.join(command)}` ended with status {status}; its last output:\n{said}")


def afmrl(*arguments: object) -> str:
    """Run a command of `afmrl`, as in a terminal.

    Args:
        arguments: the command and its options, such as "search", "--run", folder.

    Returns:
        What it printed.

    Raises:
        RunError: it failed; the message repeats the end of its output.
    """
    words = [str(x) for x in arguments]
    command = [sys.executable, "-m", "afmrl_jax.cli.main", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if ended.returncode:
        raise failure(["afmrl", *words], ended.returncode, ended.stdout + ended.stderr)
    return ended.stdout
