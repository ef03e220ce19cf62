"""Progress of long work: a bar with the remaining time on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

SHOWN = ("loss", "reward", "recall", "accuracy", "token_accuracy", "malformed_share")
LINE_SECONDS = 30.0


_SPEAKS = True


def only_first_speaks(is_first: bool) -> None:
    """Set whether this process is the one of its job that reports progress."""
    global _SPEAKS
    _SPEAKS = is_first


def log_info(message: str) -> None:
    """Print a line for the user on standard error."""
    if _SPEAKS:
        print(message, file=sys.stderr, flush=True)


def print_result(message: str) -> None:
    """Print a result on standard output."""
    if _SPEAKS:
        print(message, flush=True)


class Progress:
    """Counts the steps of a named task; with a name of None it shows nothing.

    With a total of None it counts up. On a terminal this is a tqdm bar. In a log file, where a bar
    would be a thousand lines, it prints a line every half minute and at the end.
    """

    def __init__(self, name: str | None, total: int | None, start: int = 0):
        self._name = name = name if _SPEAKS else None
        self._total = total
        self._start = start
        self._done = start
        self._began = time.monotonic()
        self._printed = self._began
        self._latest = ""
        self._complete = False
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=start, desc=name, dynamic_ncols=True, file=sys.stderr)
            if name is not None and terminal
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that `done` steps of the total are finished."""
        self._done = done
        if metrics:
            shown = [f"{k} {metrics[k]:.3f}" for k in SHOWN if k in metrics]
            self._latest = ", ".join(shown)
        if self._bar is not None:
            self._bar.set_postfix_str(self._latest, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._name is not None and time.monotonic() - self._printed > LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        text = f"{self._name}: {self._done}, {seconds:.0f} s"
        if self._total is not None:
            self._complete = self._done >= self._total
            fresh = self._done - self._start
            left = (self._total - self._done) * seconds / fresh if fresh else 0.0
            text = f"{self._name}: {self._done}/{self._total}, {seconds:.0f} s, {left:.0f} s left"
        print(text + (f", {self._latest}" if self._latest else ""), file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._name and (self._total or self._done) and kind is None and not self._complete:
            self._print()
