"""Ctrl-C and SIGTERM end `afmrl oracle` at once, whatever the endpoint does."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from afmrl_jax.runtime.json_files import read_records
from afmrl_jax.runtime.preemption import STATUS
from afmrl_jax.testing import write_badge_catalogue
from tests.data.attributes.captioner_server import Server

pytestmark = pytest.mark.slow
ANSWERED = 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, STATUS)])
def test_a_silent_endpoint_does_not_hold_the_command(tmp_path, number, status):
    # S10
    pytest.importorskip("openai")
    server, waiting = Server(), threading.Semaphore(0)

    def answer(handler, body):
        with server.lock:
            server.asked["all"] += 1
            silent = server.asked["all"] > ANSWERED
        if silent:
            waiting.release()
            server.closed.wait()
        else:
            server.reply(handler, 200, {"choices": [{"message": {"content": "color: red"}}]})

    server.answer = answer
    write_badge_catalogue(tmp_path / "badges")
    out = tmp_path / "oracle.jsonl"
    options = ["--catalogue", tmp_path / "badges", "--out", out, "--concurrency", 4]
    options += ["--url", server.endpoint.url, "--model", "captioner", "--split", "all"]
    process = subprocess.Popen(
        [sys.executable, "-m", "afmrl_jax", "oracle", *map(str, options)],
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(4):
            assert waiting.acquire(timeout=120)
        began = time.monotonic()
        process.send_signal(number)
        said = process.stderr.readline()
        assert time.monotonic() - began < 2
        # Then Python takes itself down: 0.3 s, or more if the machine is busy with other tests.
        said += process.communicate(timeout=10)[1]
    finally:
        process.kill()
        server.close()
    assert process.returncode == status
    assert "run the same command to resume" in said
    assert "Traceback" not in said
    assert len(read_records(tmp_path / "oracle.jsonl.replies.jsonl")) == ANSWERED
