"""Training in a separate process, with live curves in the notebook."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.notebook.commands import environment, failure
from afmrl_jax.reporting import fragments
from afmrl_jax.runtime.files import write_json

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

LOG = "notebook.log"
"""File in the run directory with the output of the process."""
WANTED = "notebook.json"
"""File in the run directory that passes the config to the process."""
GRACE_SECONDS = 60.0
"""Time for an interrupted process to save its last checkpoint."""


def train(config: RunConfig, run: Path) -> None:
    """All stages, the evaluation and the report, with live curves; finished work is kept.

    Args:
        config: the run.
        run: its directory. A finished run is not repeated, an interrupted one resumes.

    Raises:
        RunError: the folder belongs to another config or is in use, or the training failed.
    """
    # Opening the run here would make JAX take the devices.
    wanted = write_json(run / WANTED, to_dict(config))
    follow([sys.executable, "-m", "afmrl_jax.notebook.train", str(run), str(wanted)], run)


def follow(command: Sequence[str], run: Path, *, every: float = 4.0) -> None:
    """Run a command that fills a run directory, and redraw its stages and curves until it ends.

    Interrupting the cell ends the command too.

    Args:
        command: the program and its arguments.
        run: the run directory, which must exist.
        every: seconds between updates.

    Raises:
        RunError: the command failed; the message repeats the end of its output.
    """
    started = time.monotonic()
    log = run / LOG
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
    panel = _Panel(run, log, started)
    try:
        while child.poll() is None:
            panel.draw(running=True)
            _wait(child, every)
    except BaseException:
        _stop(child)
        raise
    finally:
        panel.draw(running=False)
    if child.returncode:
        raise failure(command, child.returncode, _said(log))


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until the child ends, or for some seconds."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child: it holds the device that the next process needs."""
    child.terminate()
    try:
        _wait(child, GRACE_SECONDS)
    finally:  # Also if the user interrupts again.
        child.kill()
        child.wait()


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


class _Panel:
    """Two outputs of a cell: the stages, redrawn at every update, and the curves, if they grew."""

    def __init__(self, run: Path, log: Path, started: float):
        self._run, self._log, self._started = run, log, started
        self._sizes: list[tuple[str, int]] | None = None
        self._status: DisplayHandle | None = None
        self._curves: DisplayHandle | None = None

    def draw(self, *, running: bool) -> None:
        lines = _said(self._log).strip().splitlines()
        seconds = time.monotonic() - self._started
        last = lines[-1] if lines else "starting"
        self._status = _show(
            self._status, fragments.status(self._run, seconds, last, running=running)
        )
        files = sorted(self._run.glob("*/metrics.jsonl"))
        sizes = [(str(path), path.stat().st_size) for path in files]
        if sizes != self._sizes:
            self._curves = _show(self._curves, fragments.curves(self._run))
            self._sizes = sizes


def _show(handle: DisplayHandle | None, html: str) -> DisplayHandle | None:
    """Show a piece of HTML in place of the previous one."""
    from IPython.display import HTML, display

    if handle is None:
        return display(HTML(html), display_id=True)
    handle.update(HTML(html))
    return handle
