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
