"""Starting jobs of one or several processes, and looking at what they left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("job.py")
LIMIT = 2400
"""Seconds after which a job counts as hung."""


class Job:
    """Some processes with some devices each; their standard error goes to files in `logs`."""

    def __init__(self, told, logs, processes=1, devices=8):
        logs.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.logs = [logs / f"{n}.log" for n in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(logs.parent / "compiled"),
            }
            if processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(number),
                }
            with log.open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(SCRIPT), json.dumps(told)],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self):
        """Exit statuses."""
        try:
            return [x.wait(timeout=LIMIT) for x in self.processes]
        finally:
            self.end()

    def end(self):
        """Leave no process behind."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def send(self, number, signal_number=signal.SIGKILL):
        """Send one process a signal."""
        self.processes[number].send_signal(signal_number)

    def until(self, condition, what):
        """Wait until something holds, while all processes live."""
        end = time.monotonic() + LIMIT
        while not condition():
            ended = [x.poll() for x in self.processes]
            if any(x is not None for x in ended) or time.monotonic() > end:
                self.end()
                raise AssertionError(f"{what} did not happen; statuses {ended}\n{self.text()}")
            time.sleep(0.05)

    def text(self):
        """What all processes have printed."""
        return "\n".join(log.read_text() for log in self.logs)


def metrics(folder, stage):
    """Lines of a stage's metrics, whole ones."""
    path = folder / stage / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(x) for x in path.read_text().split("\n")[:-1]]


def losses(folder, stage):
    """Loss by step."""
    return {x["step"]: x["loss"] for x in metrics(folder, stage) if "loss" in x}


def weights(folder, stage):
    """Hash of what a stage trained."""
    return json.loads((folder / stage / "DONE.json").read_text())["outputs"]
