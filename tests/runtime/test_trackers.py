"""Trackers: offline, resumed, missing, and failing without ending what they watch."""

import json
import sqlite3
import sys
import types

import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime import trackers
from afmrl_jax.runtime.metrics_log import MetricsLog, read_metrics
from afmrl_jax.runtime.trackers import Tracker, parse_trackers, require_trackers


class Recorder:
    """A client that keeps what it gets."""

    opened: list = []  # noqa: RUF012  Emptied by the fixture.

    def __init__(self, folder, run, stage):
        self.about, self.lines, self.closed = (folder, run, stage), [], False
        self.opened.append(self)

    def log(self, values, step):
        self.lines.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def recorder(monkeypatch):
    Recorder.opened.clear()
    monkeypatch.setitem(trackers.CLIENTS, "wandb", Recorder)
    return Recorder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tensorboard", ("tensorboard",)),
        (" wandb,trackio ,wandb", ("wandb", "trackio")),
        ("none", ()),
    ],
)
def test_names_are_read(text, found):
    assert parse_trackers(text) == found


@pytest.mark.parametrize("text", ["", "mlflow", "none,wandb", ","])
def test_others_are_refused(text):
    with pytest.raises(ConfigError, match="choose from tensorboard, trackio, wandb, or none"):
        parse_trackers(text)


def test_a_missing_package_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    require_trackers(("tensorboard",))
    with pytest.raises(ConfigError, match=r"pip install 'afmrl-jax\[wandb\]'"):
        require_trackers(("tensorboard", "wandb"))


def test_every_line_goes_to_the_file_and_to_the_tracker(tmp_path, recorder):
    folder = tmp_path / "demo" / "agcl"
    log = MetricsLog(folder, trackers=("wandb",))
    assert not recorder.opened
    for step in (1, 2):
        log.write(step, {"loss": 1 / step})
    log.close()
    (client,) = recorder.opened
    assert client.about == (folder, "demo", "agcl")
    assert client.lines == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    assert client.closed
    assert [x["step"] for x in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert not (folder / "tensorboard").exists()


def test_a_log_without_lines_opens_nothing(tmp_path, recorder):
    MetricsLog(tmp_path, trackers=("wandb", "tensorboard")).close()
    assert not recorder.opened


@pytest.mark.parametrize("where", ["__init__", "log", "close"])
def test_a_tracker_that_fails_ends_nothing(tmp_path, recorder, monkeypatch, capsys, where):
    def broken(self, *_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(recorder, where, broken)
    log = MetricsLog(tmp_path / "demo" / "agcl", trackers=("wandb",))
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0})
    log.close()
    assert len(read_metrics(tmp_path / "demo" / "agcl" / "metrics.jsonl")) == 3
    assert capsys.readouterr().err.count("wandb: no network; training goes on without it") == 1


def test_a_package_that_cannot_be_imported_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", types.ModuleType("trackio"))
    Tracker("trackio", tmp_path / "demo" / "agcl").log({"loss": 1.0}, 1)
    assert "training goes on without it" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "demo" / "agcl"
    for begin in (0, 2):  # A stage that goes on.
        log = MetricsLog(folder, begin, ("wandb",))
        log.write(begin + 1, {"loss": 0.5, "seconds": float("nan")})
        log.close()
    written = [*folder.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(written) == 2
    assert len({x.name for x in written}) == 1  # One run, in two pieces.
    assert all(b"loss" in x.read_bytes() for x in written)


@pytest.mark.filterwarnings("ignore")
def test_trackio_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    log = MetricsLog(tmp_path / "demo" / "agcl", trackers=("trackio",))
    for step in (1, 2):
        log.write(step, {"loss": 1 / step})
    log.close()
    (file,) = [x for x in (tmp_path / "kept").rglob("*.db") if "afmrl" in x.name]
    with sqlite3.connect(file) as db:
        rows = db.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    found = [(step, json.loads(text)["loss"]) for step, text in rows if "loss" in text]
    assert found == [(1, 1.0), (2, 0.5)]
