"""Training in a process of its own, with its curves in the notebook while it runs."""

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
"""File of the run directory that holds what the process said."""
WANTED = "notebook.json"
"""File of the run directory that tells the process the config."""
GRACE_SECONDS = 60.0
"""Given to an interrupted process for its last checkpoint."""


def train(config: RunConfig, run: Path) -> None:
    """All stages, the evaluation and the report, with live curves; what is done is kept.

    Args:
        config: the run.
        run: its directory. A finished one is left alone, one that was interrupted goes on.

    Raises:
        RunError: the folder belongs to another config or is in use, or the training failed.
    """
    # To open the run here would make JAX take the devices.
    wanted = write_json(run / WANTED, to_dict(config))
    follow([sys.executable, "-m", "afmrl_jax.notebook.train", str(run), str(wanted)], run)


def follow(command: Sequence[str], run: Path, *, every: float = 4.0) -> None:
    """Run a command that fills a run directory, and redraw its stages and curves until it ends.

    An interruption of the cell ends the command too.

    Args:
        command: its words.
        run: the run directory, which exists.
        every: seconds between two looks.

    Raises:
        RunError: the command failed; the message repeats the end of what it said.
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
    """Until the child ends, or for some seconds."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End it: it holds the device that whoever comes next needs."""
    child.terminate()
    try:
        _wait(child, GRACE_SECONDS)
    finally:  # Also where the reader interrupts again.
        child.kill()
        child.wait()


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


class _Panel:
    """Two outputs of a cell: the stages, redrawn at every look, and the curves, when they grew."""

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
    """Show a piece of HTML in place of the one before it."""
    from IPython.display import HTML, display

    if handle is None:
        return display(HTML(html), display_id=True)
    handle.update(HTML(html))
    return handle
