"""Every command that writes, on a full or a read-only disk: nothing half-written, one line."""

import json
import os
import subprocess
import sys

import pytest

from tests.runtime.faults import on_a_bad_disk

pytestmark = pytest.mark.slow


def may_mount():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="mounts need root, or a user namespace")
@pytest.mark.parametrize("kind", ["full", "nearly-full", "read-only"])
def test_commands_that_cannot_write_say_so_and_leave_nothing_half_written(
    kind, whole_run, tiny_run, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "-m", sys.executable, "-m", on_a_bad_disk.__name__, kind]
    command += [str(whole_run), tiny_run.catalogue, str(disk)]
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    assert len(found) == 15
    word = "cannot be written" if kind == "read-only" else "no space left on the disk"
    wrong = []
    for x in found:
        # What is small enough may fit; then it is whole.
        fits = kind == "nearly-full" and x["status"] == 0 and x["written"]
        refused = x["status"] == 1 and word in x["said"] and not x["traced"]
        refused = refused and not x["written"] and x["kept"]
        if not fits and not refused:
            wrong.append(x)
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.skipif(not may_mount(), reason="mounts need root, or a user namespace")
def test_a_training_that_fills_the_disk_says_so_and_ends_when_there_is_room(whole_run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "-m", sys.executable, "-m", on_a_bad_disk.__name__, "training"]
    command += [str(whole_run), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Nor do threads say more at the end of the process.
    assert "Traceback" not in done.stderr, done.stderr
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    assert [x["free"] for x in found] == [*on_a_bad_disk.TRAINING_FREE, None]
    for x in found[:-1]:
        assert (x["status"], "no space left on the disk" in x["said"]) == (1, True), x
        assert (x["traced"], x["left"]) == (False, []), x
    assert (found[-1]["status"], found[-1]["left"]) == (0, []), found[-1]
