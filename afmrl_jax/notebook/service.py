"""The service and its page, in a separate process."""

from __future__ import annotations

import atexit
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from html import escape
from urllib.parse import urlsplit

from afmrl_jax.notebook.commands import environment, failure

HOST = "127.0.0.1"
ENDING = 30.0
"""Seconds in which a service that is told to stop finishes what it has begun."""


class Service:
    """`afmrl serve`, started here, which is ready when this is made.

    Args:
        arguments: of the command, such as "--run", folder, "--index", folder.
        patience: seconds in which it must be ready.

    Raises:
        RunError: it ended, or was not ready in time; the message repeats the end of its output.
    """

    def __init__(self, *arguments: object, patience: float = 900.0):
        self.port = _free_port()
        self.address = _address(self.port)
        words = ["serve", *map(str, arguments), "--port", str(self.port)]
        name = urlsplit(self.address).hostname
        if name != HOST:  # A proxy shows it elsewhere.
            words += ["--names", str(name), "--origins", self.address.rstrip("/")]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  It is read when the process has ended.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "afmrl_jax.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        atexit.register(self.stop)
        try:
            self.about = self._wait(words, time.monotonic() + patience)
        except BaseException:
            self.stop()
            raise

    def _wait(self, words: list[str], until: float) -> dict[str, object]:
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(OSError, urllib.error.URLError):
                answer = urllib.request.urlopen(f"http://{HOST}:{self.port}/readyz", timeout=10)
                found: dict[str, object] = json.load(answer)
                return found
            time.sleep(0.2)
        status = self._process.poll()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")
        raise failure(["afmrl", *words], -1 if status is None else status, said)

    def html(self) -> str:
        """A link to the page, and what answers there."""
        count, system = self.about["listings"], escape(str(self.about["system"]))
        address = escape(self.address)
        return (
            f"<p>{count} listings, system {system}: "
            f"<a href='{address}' target='_blank' rel='noopener'>{address}</a></p>"
        )

    def stop(self) -> None:
        """End it: it holds its index, and the device."""
        atexit.unregister(self.stop)
        self._process.terminate()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def _address(port: int) -> str:
    """Where a browser finds a port of this machine: Colab shows it under a name of its own."""
    try:
        from google.colab import output
    except ImportError:
        return f"http://{HOST}:{port}/"
    return str(output.eval_js(f"google.colab.kernel.proxyPort({port})"))
