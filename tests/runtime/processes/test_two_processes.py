"""Two processes against one: the same losses, the same batches; death, SIGTERM, other shapes.

How many seconds the end of a process takes to end the others is measured by
experiments/reliability/kill_test.py.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from afmrl_jax.runtime.preemption import STATUS
from afmrl_jax.testing import change_a_bit, largest_file, write_badge_catalogue

from .jobs import losses, metrics, start, weights

pytestmark = pytest.mark.slow

STEPS = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_badge_catalogue(folder / "badges", splits=True)
    return folder


@pytest.fixture(scope="module")
def told(place):
    def of(name, **more):
        base = {"catalogue": str(place / "badges"), "steps": STEPS, "record": True}
        return base | {"folder": str(place / name)} | more

    return of


def finish(told, logs, processes=1, devices=8):
    job = start(told, logs, processes, devices)
    assert job.wait() == [0] * processes, job.text()
    return Path(told["folder"])


@pytest.fixture(scope="module")
def one(place, told):
    """A run of one process with eight devices, up to AGCL."""
    return finish(told("one", to="agcl"), place / "logs-one")


@pytest.fixture(scope="module")
def two(place, told):
    """The same of two processes with four devices each."""
    return finish(told("two", to="agcl"), place / "logs-two", 2, 4)


@pytest.fixture(scope="module")
def pair(place, told):
    """Two processes with one device each, not interrupted."""
    return finish(told("pair", to="distill"), place / "logs-pair", 2, 1)


@pytest.fixture(scope="module")
def reinforced(place, told):
    """RAR of one process and of two, from one and the same G and R."""
    base = {"taught": 200, "record": False, "save_every": 1000}
    before = finish(told("before", to="agcl-distilled", **base), place / "logs-before", devices=1)
    found = []
    for name, processes, devices in (("rar-one", 1, 8), ("rar-two", 2, 4)):
        shutil.copytree(before, place / name)
        asked = told(name, to="rar", **base)
        found.append(finish(asked, place / f"logs-{name}", processes, devices))
    return found


def batches(folder, process=0):
    return [json.loads(x) for x in (folder / f"batches-{process}.jsonl").read_text().splitlines()]


def assert_equal_losses(one, two, stage, steps=STEPS):
    expected, found = losses(one, stage), losses(two, stage)
    assert expected.keys() == found.keys()
    assert max(expected) == steps
    assert np.ptp([*expected.values()]) > 0
    np.testing.assert_allclose(
        [found[x] for x in expected], [*expected.values()], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("stage", ["distill", "agcl"])
def test_two_processes_have_the_losses_of_one(one, two, stage):
    assert_equal_losses(one, two, stage)


def test_two_processes_reinforce_as_one_does(reinforced):
    assert_equal_losses(*reinforced, "rar")
    rewards = [[x["reward"] for x in metrics(run, "rar") if "reward" in x] for run in reinforced]
    np.testing.assert_allclose(*rewards, atol=1e-6)
    assert np.ptp(rewards[0]) > 0


def test_two_processes_see_the_batches_of_one(one, two):
    expected = batches(one)
    assert len(expected) >= 2 * STEPS
    assert batches(two, 0) == batches(two, 1) == expected


def test_rows_without_pictures_and_uneven_batches_do_not_hang_it(place, told):
    # 75 listings, of which the last batch that a G writes lists for holds fewer than devices.
    catalogue = write_badge_catalogue(place / "uneven", listings_per_product=3, splits=True)
    lines = (catalogue / "listings.jsonl").read_text().splitlines()
    odd = [line for number, line in enumerate(lines) if number % 6]
    (catalogue / "listings.jsonl").write_text("\n".join(odd) + "\n")
    asked = {"catalogue": str(catalogue), "steps": 4, "blind": True, "to": "infonce"}
    one = finish(told("uneven-one", **asked), place / "logs-uneven-one")
    two = finish(told("uneven-two", **asked), place / "logs-uneven-two", 2, 4)
    assert_equal_losses(one, two, "infonce", steps=4)
    texts = [(x / "annotate-distilled" / "attributes.jsonl").read_text() for x in (one, two)]
    assert texts[0] == texts[1]


def test_one_process_of_several_speaks_and_writes(two):
    lines = metrics(two, "distill")
    assert [x["step"] for x in lines] == sorted({x["step"] for x in lines})
    logs = two.parent / "logs-two"
    assert "distill: done in" in (logs / "0.log").read_text()
    assert "distill: done in" not in (logs / "1.log").read_text()
    assert not list(two.rglob("*.partial"))


def preempt(place, told, name, victim, **more):
    """What is left of a run on two processes of which one got SIGTERM."""
    asked = told(name, to="distill", **more)
    job = start(asked, place / f"logs-{name}", processes=2, devices=1)
    job.until(lambda: metrics(place / name, "distill"), "the first line of metrics")
    job.send(victim, signal.SIGTERM)
    assert job.wait() == [STATUS, STATUS], job.text()
    return asked, job


def test_sigterm_to_one_saves_on_all_and_the_next_start_goes_on(place, told, pair):
    # Saved after each step, for Orbax asks JAX whether to end when it saves, with a number of its
    # own, and that must not hide the signal.
    asked, job = preempt(place, told, "preempted", victim=1, save_every=1)
    saved = [int(x.name) for x in (place / "preempted" / "distill" / "checkpoints").glob("[0-9]*")]
    assert 0 < max(saved) < STEPS
    assert "stopped by SIGTERM" in job.text()
    # A changed bit in the newest checkpoint, too: both take the one before it.
    newest = place / "preempted" / "distill" / "checkpoints" / str(max(saved))
    change_a_bit(largest_file(newest))
    again = start(asked, place / "logs-preempted", processes=2, devices=1)
    assert again.wait() == [0, 0], again.text()
    assert f"checkpoints/{max(saved)} is damaged" in again.text()
    assert weights(place / "preempted", "distill") == weights(pair, "distill")


def test_a_run_goes_on_with_other_processes_devices_and_workers(place, told, pair):
    asked, _ = preempt(place, told, "moved", victim=0)
    seen = len(batches(place / "moved"))
    again = start(asked | {"workers": 2}, place / "logs-moved", processes=1, devices=2)
    assert again.wait() == [0], again.text()
    assert batches(place / "moved")[seen:] == batches(pair)[seen:]
    expected, found = losses(pair, "distill"), losses(place / "moved", "distill")
    np.testing.assert_allclose(
        [found[x] for x in expected], [*expected.values()], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name(place, told, pair, victim):
    name = f"killed-{victim}"
    asked = told(name, to="distill", lost_after=10)
    job = start(asked, place / f"logs-{name}", processes=2, devices=1)
    job.until(lambda: len(metrics(place / name, "distill")) > 1, "the second line of metrics")
    job.send(victim)
    statuses = job.wait()
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] not in (0, STATUS)
    # The one that is gone by its number; process 0 is JAX's leader task.
    named = "unhealthy (stopped sending heartbeats):\n1\n" if victim else "the leader task"
    assert named in job.logs[1 - victim].read_text()
    again = start(asked, place / f"logs-{name}", processes=2, devices=1)
    assert again.wait() == [0, 0], again.text()
    assert weights(place / name, "distill") == weights(pair, "distill")
