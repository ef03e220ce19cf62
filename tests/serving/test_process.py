"""`afmrl serve` as a process: it stops when told to, and SIGKILL loses nothing acknowledged."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from afmrl_jax.runs.living.index import LivingIndex
from tests.serving.conftest import TOKEN, coded, picture

pytestmark = pytest.mark.slow
LIMIT = 300
"""Seconds in which it must be ready."""


class Started:
    """A service, and requests to it."""

    def __init__(self, run, folder, log):
        command = [sys.executable, "-m", "afmrl_jax", "serve", "--run", str(run.folder)]
        command += ["--index", str(folder), "--port", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stderr=file, env={**os.environ, "AFMRL_TOKEN": TOKEN}
            )
        until = time.monotonic() + LIMIT
        while True:
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            if found:
                self.base = found[0]
                if self.ask("/readyz")[0] == 200:
                    return
            time.sleep(0.1)

    def ask(self, path, body=None):
        """The status and value of an answer; 0 where there is none."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, None
        except OSError:
            return 0, None

    def end(self, number):
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


def listing(number):
    return {
        "listing_id": f"new-{number}",
        "title": f"badge number {number}",
        "image": coded(picture(number, "square", "blue")),
        "extra": {"price": number},
    }


def test_killed_while_it_writes_and_started_again(run, embedded, tmp_path):
    folder = shutil.copytree(embedded, tmp_path / "index")
    acknowledged = 0
    for turn in range(2):
        service = Started(run, folder, tmp_path / f"log-{turn}")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            status, _ = service.ask("/listings", {"listings": [listing(acknowledged)]})
            assert status == 200
            acknowledged += 1
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service = Started(run, folder, tmp_path / "log")
    assert service.ask("/readyz")[1]["listings"] == 30 + acknowledged
    photo = {"image": listing(0)["image"], "text": listing(0)["title"], "attributes": "on"}
    assert service.ask("/search", photo)[1]["results"][0]["listing_id"] == "new-0"
    assert service.end(signal.SIGTERM) == 0
    assert "serve: stopped" in (tmp_path / "log").read_text()
    with LivingIndex(folder, writer="afmrl index") as index:
        assert {f"new-{n}" for n in range(acknowledged)} <= {x.listing_id for x in index.entries()}
