"""Whatever is acknowledged survives SIGKILL."""

import json
import subprocess
import sys

import pytest


def killed(kills, *options):
    command = [sys.executable, "-m", "experiments.reliability.kill_index", "--out", "None"]
    command += ["--kills", str(kills), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["figures"]


def test_no_acknowledged_change_is_lost():
    assert killed(6)["acknowledged"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_no_acknowledged_change_is_lost_in_many_kills(kind):
    assert killed(40, "--kind", kind, "--seed", "1")["acknowledged"] > 40
