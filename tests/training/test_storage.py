"""Runs whose home is object storage: what is there can always go on, elsewhere too."""

import json
import shutil
import time
from contextlib import contextmanager

import pytest

from afmrl_jax import storage
from afmrl_jax.errors import RunError
from afmrl_jax.pipeline import Pipeline
from afmrl_jax.storage import STATE, keep, working_copy
from afmrl_jax.training import loop

HOME = "s3://bucket/runs/a"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Take the place of a process on a machine; another name is another machine."""

    def on(name):
        monkeypatch.setenv(storage.WORK, str(tmp_path / name))
        monkeypatch.setattr(storage, "_COPIES", {})

    on("first")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return on


def names(folder):
    return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())


def files(folder):
    return {x: (folder / x).read_bytes() for x in names(folder) if not storage._passing(x)}


def write(folder, **contents):
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextmanager
def cut_off_at(name, monkeypatch):
    """The process dies when it comes to a file of this name."""
    plain = storage._copy

    def cut(source, target):
        if source.name == name:
            raise KeyboardInterrupt
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_copy", cut)
        yield


def test_a_local_run_is_worked_on_in_its_place(tmp_path):
    assert working_copy(tmp_path / "run") == tmp_path / "run"
    keep(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_home_and_comes_to_another_machine(bucket, machine):
    there = working_copy(HOME)
    write(there, config="{}", a__DONE="done", a__checkpoints__4__state="x" * 50)
    write(there, **{".lock": "", "a__checkpoints__8.orbax-checkpoint-tmp__state": "half"})
    keep(there / "a")
    assert json.loads(bucket.cat(f"{HOME}/{STATE}"))["files"].keys() == {
        "config",
        "a/DONE",
        "a/checkpoints/4/state",
    }
    machine("second")
    here = working_copy(HOME)
    assert here != there
    assert files(here).keys() == {"config", "a/DONE", "a/checkpoints/4/state"}
    # It goes on there: a checkpoint goes and another comes, a log grows.
    shutil.rmtree(here / "a" / "checkpoints" / "4")
    write(here, a__checkpoints__8__state="y", config="{more}")
    keep(here)
    assert not bucket.exists(f"{HOME}/a/checkpoints/4/state")
    machine("first")
    assert files(working_copy(HOME)) == files(here)
    assert not (there / "a" / "checkpoints" / "4").exists(), "an empty folder is no checkpoint"


def test_a_working_copy_ahead_of_its_home_stays(bucket, machine):
    folder = working_copy(HOME)
    write(folder, a="1")
    keep(folder)
    write(folder, a="22", b="3")
    machine("first")
    assert files(working_copy(HOME)) == {"a": b"22", "b": b"3"}


def test_only_what_changed_is_sent_and_brought(bucket, machine, monkeypatch):
    folder = working_copy(HOME)
    write(folder, a="1", b="2")
    keep(folder)
    moved = []
    plain = storage._copy
    monkeypatch.setattr(storage, "_copy", lambda s, t: (moved.append(s.name), plain(s, t)))
    write(folder, b="33")
    keep(folder)
    assert [x for x in moved if x in "ab"] == ["b"]
    keep(folder)
    assert [x for x in moved if x in "ab"] == ["b"]


def test_what_was_not_finished_at_home_is_not_brought(bucket, machine, monkeypatch):
    folder = working_copy(HOME)
    write(folder, a="1")
    keep(folder)
    write(folder, b="2", c="3")
    with cut_off_at("c", monkeypatch), pytest.raises(KeyboardInterrupt):
        keep(folder)
    assert bucket.exists(f"{HOME}/b")
    machine("second")
    assert files(working_copy(HOME)) == {"a": b"1"}
    machine("first")
    keep(working_copy(HOME))
    machine("third")
    assert files(working_copy(HOME)).keys() == {"a", "b", "c"}


def test_a_bringing_that_was_cut_off_begins_again(bucket, machine, monkeypatch):
    folder = working_copy(HOME)
    write(folder, a="1", b="2")
    keep(folder)
    machine("second")
    with cut_off_at("b", monkeypatch), pytest.raises(KeyboardInterrupt):
        working_copy(HOME)
    assert files(working_copy(HOME)) == {"a": b"1", "b": b"2"}


def test_two_jobs_with_one_home_do_not_mix(bucket, machine):
    first = working_copy(HOME)
    write(first, a="1")
    keep(first)
    machine("second")
    second = working_copy(HOME)
    write(second, a="by the second")
    keep(second)
    machine("first")
    storage._COPIES[first.absolute()] = storage.WorkingCopy(storage.place(HOME), first)
    write(first, b="by the first")
    with pytest.raises(RunError, match="changed by another job"):
        keep(first)
    # The next start goes on from there, and nothing is lost here.
    machine("first")
    assert files(working_copy(HOME)) == {"a": b"by the second"}
    assert files(first.with_name("a.unsent-1")) == {"a": b"1", "b": b"by the first"}


def test_a_home_that_cannot_be_reached_is_named(bucket, machine, monkeypatch):
    folder = working_copy(HOME)
    write(folder, a="1")
    calls = []

    def broken(source, target):
        calls.append(target)
        raise ValueError("a library's own kind of error")

    monkeypatch.setattr(storage, "_copy", broken)
    with pytest.raises(RunError, match=r"runs/a/a cannot be reached \(a library's own.*goes on"):
        keep(folder)
    assert len(calls) == storage.TRIES
    assert files(folder) == {"a": b"1"}


@pytest.mark.usefixtures("tiny_models")
def test_a_stage_cut_off_on_one_machine_ends_on_another(
    bucket, machine, tiny_run, tmp_path, monkeypatch
):
    whole = Pipeline(tmp_path / "whole", tiny_run)
    whole.run_to("distill")
    whole.run.close()
    pipeline = Pipeline(working_copy(HOME), tiny_run)
    plain = loop.place_batch
    count = iter(range(100))

    def cut(batch, mesh):
        if next(count) == 3:
            raise KeyboardInterrupt
        return plain(batch, mesh)

    monkeypatch.setattr(loop, "place_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_to("distill")
    pipeline.run.close()
    monkeypatch.setattr(loop, "place_batch", plain)
    machine("second")
    folder = working_copy(HOME)
    assert [x.name for x in (folder / "distill" / "checkpoints").iterdir()] == ["2"]
    again = Pipeline(folder, tiny_run)
    again.run_to("distill")
    again.run.close()
    done = [
        json.loads((x / "distill" / "DONE.json").read_text()) for x in (whole.run.folder, folder)
    ]
    assert done[0]["outputs"] == done[1]["outputs"]
    machine("third")
    assert files(working_copy(HOME)) == files(folder)
