"""`afmrl serve` as a process: it stops when told to, and SIGKILL loses nothing acknowledged."""

import shutil
import signal
import time

import pytest

from afmrl_jax.runs.living.index import LivingIndex
from experiments.reliability.kill_serve import Service
from tests.serving.conftest import coded, picture

pytestmark = pytest.mark.slow


def end(service, number):
    """The exit status after a signal."""
    service.process.send_signal(number)
    return service.process.wait(60)


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
        service = Service(run.folder, folder, tmp_path / f"log-{turn}")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            status, _ = service.ask("POST", "/listings", {"listings": [listing(acknowledged)]})
            assert status == 200
            acknowledged += 1
        assert end(service, signal.SIGKILL) == -signal.SIGKILL
    service = Service(run.folder, folder, tmp_path / "log")
    assert service.ask("GET", "/readyz")[1]["listings"] == 30 + acknowledged
    photo = {"image": listing(0)["image"], "text": listing(0)["title"], "attributes": "on"}
    assert service.ask("POST", "/search", photo)[1]["results"][0]["listing_id"] == "new-0"
    assert end(service, signal.SIGTERM) == 0
    assert "serve: stopped" in (tmp_path / "log").read_text()
    with LivingIndex(folder, writer="afmrl index") as index:
        assert {f"new-{n}" for n in range(acknowledged)} <= {x.listing_id for x in index.entries()}
