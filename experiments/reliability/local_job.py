"""The processes of one job on this machine, for tests and measurements of interruptions."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.distributed import COORDINATOR, COUNT, INDEX

AFMRL = (sys.executable, "-m", "afmrl_jax")
"""The start of an `afmrl` command."""
LIMIT = 2400.0
"""Seconds after which a job counts as hung."""


def free_ports(count: int) -> list[int]:
    """Distinct ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class LocalJob:
    """Several processes of one command, which connect over localhost.

    Args:
        command: what each process runs.
        logs: folder; the output of process n is appended to `n.log` in it.
        processes: how many.
        devices: CPU devices of each process.
        environment: variables added to this process's environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        processes: int = 1,
        devices: int = 1,
        **environment: str,
    ):
        logs.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        self.logs = [logs / f"{n}.log" for n in range(processes)]
        self.processes: list[subprocess.Popen] = []
        known = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} | environment
        for number, log in enumerate(self.logs):
            own = {COORDINATOR: f"localhost:{port}", COUNT: str(processes), INDEX: str(number)}
            env = os.environ | known | (own if processes > 1 else {})
            with log.open("a") as file:
                started = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
            self.processes.append(started)

    def wait(self) -> list[int]:
        """Exit statuses, once all have ended; no process is left running."""
        try:
            return [x.wait(timeout=LIMIT) for x in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        """Kill all processes, without letting them clean up."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def send(self, number: int, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        self.processes[number].send_signal(signal_number)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds, while all processes are alive.

        Raises:
            RunError: it does not happen; the message ends with the processes' output.
        """
        end = time.monotonic() + LIMIT
        while True:
            ended = [x.poll() for x in self.processes]
            if condition():
                return
            if any(x is not None for x in ended) or time.monotonic() > end:
                self.end()
                raise RunError(f"{what} did not happen; statuses {ended}\n{self.text()}")
            time.sleep(0.05)

    def text(self) -> str:
        """What all processes have printed."""
        return "\n".join(log.read_text() for log in self.logs)
