"""The campaign itself: it can be repeated, sees what it must see, and survives what it provokes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afmrl_jax.errors import CatalogueError, ConfigError, RunError
from experiments.reliability.fuzz import __main__ as campaign
from experiments.reliability.fuzz import workers
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Outcome, verdict_of
from experiments.reliability.fuzz.mutate import spoil_bytes, spoil_json, spoil_line

VALUE = {"a": {"b": [1, 2.5, "x"]}, "c": None, "d": "text"}


def case(**about):
    return Case("a case", lambda: None, **about)


@pytest.mark.parametrize(
    ("about", "error", "verdict"),
    [
        ({}, None, "accepted"),
        ({"good": True}, None, "ok"),
        ({"wrong": True}, None, "accepted-wrong"),
        ({"wrong": True}, RunError("run/config.json is broken; write it again"), "clean"),
        ({}, CatalogueError("listing 'x': no title; add one"), "clean"),
        ({}, RunError("num_heads must divide by num_kv_heads"), "vague"),
        ({"named": "notes"}, RunError("notes exists; it holds diary.txt"), "clean"),
        ({"named": "notes"}, RunError("what was noted exists"), "vague"),
        ({"good": True}, RunError("x.json is broken"), "refused"),
        ({}, AcceptedWrongError("other weights"), "accepted-wrong"),
        ({}, KeyError("outputs"), "foreign"),
        ({}, KeyboardInterrupt(), "foreign"),
    ],
)
def test_verdicts(about, error, verdict):
    assert verdict_of(case(**about), error)[0] == verdict


@pytest.mark.parametrize("seed", range(20))
def test_the_same_generator_breaks_the_same_way(seed):
    one, two = (np.random.default_rng(seed) for _ in range(2))
    assert spoil_json(VALUE, one) == spoil_json(VALUE, two)
    assert spoil_bytes(b"0123456789", one) == spoil_bytes(b"0123456789", two)
    line = json.dumps(VALUE).encode() + b"\n"
    assert spoil_line(line * 3, one) == spoil_line(line * 3, two)


def test_a_value_changes_in_one_place_and_the_good_one_stays():
    before = json.dumps(VALUE)
    for seed in range(200):
        found = spoil_json(VALUE, np.random.default_rng(seed))
        assert json.dumps(VALUE) == before
        assert found.text != before.encode()


def test_every_target_has_its_share_and_cases_are_numbered():
    jobs = campaign.jobs_of(300, ["store", "remote", "overwrite"])
    assert len(set(jobs)) == len(jobs)
    numbers = [n for name, n in jobs if name == "store"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > len(jobs) / 3


def test_a_target_without_its_package_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(campaign, "TARGETS", {"store": None})
    with pytest.raises(ConfigError, match="'portable' needs torch, which is not installed"):
        campaign._require_target("portable")
    with pytest.raises(ConfigError, match="'stores' does not exist; choose from store"):
        campaign._require_target("stores")
    campaign._require_target("store")


def test_cases_that_ended_alike_are_listed_once():
    same = [
        Outcome("store", n, "foreign", "x", f"KeyError: '{n}' [afmrl_jax/a.py:1 f]")
        for n in range(3)
    ]
    other = Outcome("store", 9, "clean", "x", "RunError: fine")
    assert campaign.kinds_of([*same, other]) == [same]
    assert "| store | 4 | 1 |" in campaign.table_of([*same, other])


TOYS = """
import json, os, pickle, sys, time
from pathlib import Path
import numpy as np
from experiments.reliability.fuzz import workers
from experiments.reliability.fuzz.case import TARGETS, Case
from experiments.reliability.fuzz.pickles import plant_pickles, write_pickled_array
workers.PATIENCE, workers.MEMORY_MB = 3, 900
outside = Path(sys.argv[1]) / "outside.txt"
def planted():
    Path("own").mkdir()
    plant_pickles(Path("own"), Path("outside"))
    write_pickled_array(Path("own/x.npy"), Path("outside"))
    return Path("own")
ACTS = {
    "plants": planted,
    "unpickles": lambda: pickle.loads((planted() / "index.pkl").read_bytes()),
    "loads": lambda: np.load(planted() / "x.npy", allow_pickle=True),
    "fine": lambda: None,
    "hangs": lambda: time.sleep(60),
    "grows": lambda: bytes(range(256)) * (1 << 22) and time.sleep(60),
    "dies": lambda: os._exit(3),
    "raises": lambda: {}["x"],
    "writes": lambda: outside.write_text("x"),
    "reads": lambda: Path("outside/secret.png").read_bytes(),
    "starts": lambda: os.system("true"),
    "own": lambda: Path("own.txt").write_text("x"),
}
for name, act in ACTS.items():
    TARGETS[name] = lambda room, act=act: Case("a toy", act)
jobs = [(name, n) for n in range(2) for name in ACTS]
pool = workers.Pool(Path(sys.argv[2]), Path(sys.argv[1]) / "work", 0, 2)
print(json.dumps([[x.target, x.verdict] for x in pool.run(jobs)]))
"""


def test_a_pause_of_the_whole_campaign_does_not_count(tmp_path):
    pool = workers.Pool(tmp_path, tmp_path, 0)
    pool._looked -= 1000
    assert not [*pool._ended()]
    assert 0 < pool._now <= workers.STEP


def test_what_hangs_grows_or_dies_costs_only_its_worker(tmp_path):
    (tmp_path / "good" / "texts").mkdir(parents=True)
    (tmp_path / "good" / "texts" / "photo.png").write_bytes(b"secret")
    command = [sys.executable, "-c", TOYS, str(tmp_path), str(tmp_path / "good")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = sorted(map(tuple, json.loads(done.stdout)))
    wanted = {
        "fine": "accepted",
        "plants": "accepted",
        "unpickles": "outside",
        "loads": "outside",
        "own": "accepted",
        "hangs": "hang",
        "grows": "memory",
        "dies": "foreign",
        "raises": "foreign",
        "writes": "outside",
        "reads": "outside",
        "starts": "outside",
    }
    assert found == sorted((name, verdict) for name, verdict in wanted.items() for _ in range(2))


ASIDE = """
import os, sys
from pathlib import Path
from experiments.reliability.record import write_record_aside
before = len(os.listdir("/proc/self/task"))
write_record_aside(Path(sys.argv[1]), "fuzz", {"cases": 1}, [])
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_a_record_leaves_no_threads_that_later_forks_could_wait_for(tmp_path):
    path = tmp_path / "record.json"
    command = [sys.executable, "-c", ASIDE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # NumPy's own threads end when a process forks.
    assert int(done.stdout) <= 0
    assert json.loads(path.read_text())["figures"] == {"cases": 1}
