"""Clocks that jump, two starts of one run, and SIGKILL inside a write."""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from afmrl_jax.config import RunConfig
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.convert import Conversion, convert
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.runtime.files import write_text
from afmrl_jax.training.run_directory import Run

JUMPS = (0.0, 3e8, -1e9, 7.2e3, -9e4)


@pytest.fixture
def jumping(monkeypatch):
    """A clock of the wall that jumps at every look, years ahead and back."""
    plain, jumps = time.time, itertools.cycle(JUMPS)
    monkeypatch.setattr(time, "time", lambda: plain() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (plain() + next(jumps))))


def test_a_clock_that_jumps_changes_no_store(badges, tmp_path, jumping):
    convert(open_rows(badges), tmp_path / "store", Conversion(shard_bytes=20_000))
    problems = []
    check_catalogue(tmp_path / "store", problems.append)
    assert not [x for x in problems if x.severity == "error"]
    stored, plain = load_catalogue(tmp_path / "store"), load_catalogue(badges)
    assert stored.column("listing_id") == plain.column("listing_id")


def test_a_clock_that_jumps_changes_no_chain_of_stages(tmp_path, jumping):
    config = dataclasses.replace(RunConfig(), seed=3)
    done = []

    def stage(run, name):
        def work(folder):
            done.append(name)
            write_text(folder / "x.txt", name)

        run.stage(name, {"after": done[:1]}, ["x.txt"], work)

    run = Run(tmp_path / "run", config)
    for name in ("one", "two"):
        stage(run, name)
        # As after the clock was put back between the two.
        os.utime(tmp_path / "run" / name / "DONE.json", (1e9 - len(done), 1e9 - len(done)))
    run.close()
    again = Run(tmp_path / "run", config)
    assert all(x >= 0 for x in again.seconds().values())
    assert again.output_hash("one", "x.txt") != again.output_hash("two", "x.txt")
    again.close()
    assert done == ["one", "two"]


STARTED = """
import sys, time
from pathlib import Path
from afmrl_jax.config import RunConfig
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import write_text
from afmrl_jax.training.run_directory import Run
folder, gate = Path(sys.argv[1]), Path(sys.argv[2])
(gate / sys.argv[3]).touch()
while len(list(gate.iterdir())) < 2:
    time.sleep(0.001)
def work(place):
    write_text(place / "log.txt", sys.argv[3])
    while not (gate / "refused").exists():
        time.sleep(0.01)
try:
    Run(folder, RunConfig()).stage("only", {}, ["log.txt"], work)
except RunError as error:
    print(error)
    (gate / "refused").touch()
    sys.exit(1)
"""


def test_of_two_starts_of_one_run_one_works_and_the_other_says_why_not(tmp_path):
    run, gate = tmp_path / "run", tmp_path / "gate"
    gate.mkdir()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED, str(run), str(gate), name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    said = [x.communicate(timeout=120)[0] for x in jobs]
    assert sorted(x.returncode for x in jobs) == [0, 1]
    refused = next(text for x, text in zip(jobs, said, strict=True) if x.returncode)
    assert f"{run} is in use by another process" in refused
    winner = "ab"[[x.returncode for x in jobs].index(0)]
    assert (run / "only" / "log.txt").read_text() == winner
    assert json.loads((run / "only" / "DONE.json").read_text())["outputs"]["log.txt"]


WRITES = """
import sys
from pathlib import Path
from afmrl_jax.runtime.files import atomic_path, write_json
folder = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10**9):
    write_json(folder / "notes.json", [number] * 100_000)
    with atomic_path(folder / "model") as temporary:
        temporary.mkdir()
        for name in "abc":
            (temporary / name).write_text(f"{number}" * 50_000)
"""


def test_a_kill_inside_a_write_leaves_the_old_or_the_new_and_the_next_write_tidies(tmp_path):
    write_text(tmp_path / "other.txt", "mine")
    moments = random.Random(0)
    for _ in range(8):
        job = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert job.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.25))
        job.send_signal(signal.SIGKILL)
        job.wait()
        job.stdout.close()
        if (tmp_path / "notes.json").exists():
            assert len(set(json.loads((tmp_path / "notes.json").read_text()))) == 1
        if (tmp_path / "model").exists():
            found = {x.read_text() for x in (tmp_path / "model").iterdir()}
            assert len(found) == 1
            assert len(list((tmp_path / "model").iterdir())) == 3
    write_text(tmp_path / "notes.json", "new")
    write_text(tmp_path / "model.txt", "new")
    names = {x.name for x in tmp_path.iterdir() if "notes" in x.name}
    assert names == {"notes.json"}
    assert (tmp_path / "other.txt").read_text() == "mine"
