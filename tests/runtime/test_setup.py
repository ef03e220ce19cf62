"""How a command ends."""

import os
import subprocess
import sys

import pytest

UNREAD = """
from afmrl_jax.runtime.setup import reported
with reported():
    for n in range({lines}):
        print("a result", flush={flush})
"""


@pytest.mark.parametrize(("lines", "flush"), [(100_000, True), (100_000, False), (1, False)])
def test_output_that_nobody_reads_ends_a_command_without_a_word(lines, flush):
    code = UNREAD.format(lines=lines, flush=flush)
    command = [sys.executable, "-c", code]
    # Which keeps nothing back, so that nothing would be left to write at the end.
    plain = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=plain, **pipes) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == b""


THREADS = """
import threading
from afmrl_jax.runtime.setup import set_up
set_up()

class Told:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error

def closed():
    raise OSError("handle is closed")

def lost():
    raise OSError("the cable is out")

Told(RuntimeError("Event loop is closed"))
Told(OSError(28, "No space left on device"))
Told(ValueError("news of an object"))
for target in (closed, lost):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
"""


def test_of_threads_only_what_does_not_repeat_a_full_disk_is_printed():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert done.returncode == 0
    assert "news of an object" in done.stderr
    assert "the cable is out" in done.stderr
    assert done.stderr.count("Traceback") == 2, done.stderr
