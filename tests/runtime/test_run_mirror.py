"""Runs whose home is object storage: what is there can always go on, elsewhere too."""

import json
import shutil
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime import object_store as storage
from afmrl_jax.runtime import run_mirror as copies
from afmrl_jax.runtime.files import resolve_path
from afmrl_jax.runtime.home_state import STATE, is_passing
from afmrl_jax.runtime.object_store import hold, keep, keep_all, working_copy
from afmrl_jax.runtime.run_mirror import FINISHED
from afmrl_jax.runtime.setup import reported
from afmrl_jax.training import annotate as annotating
from afmrl_jax.training import loop
from afmrl_jax.training.run_directory import Run

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


def at_work():
    """The working copy, of which this process is the job."""
    folder = working_copy(HOME)
    hold(folder, True)
    return folder


def names(folder):
    return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())


def files(folder):
    return {x: (folder / x).read_bytes() for x in names(folder) if not is_passing(x)}


def write(folder, **contents):
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextmanager
def cut_off_at(name, monkeypatch):
    """The process dies when it comes to a file of this name."""
    plain = copies._copy

    def cut(source, target):
        if source.name == name:
            raise KeyboardInterrupt
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_copy", cut)
        yield


def test_a_local_run_is_worked_on_in_its_place(tmp_path):
    assert working_copy(tmp_path / "run") == tmp_path / "run"
    keep(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_home_and_comes_to_another_machine(bucket, machine):
    there = at_work()
    write(there, config="{}", a__DONE="done", a__checkpoints__4__state="x" * 50)
    write(there, **{".lock": "", "a__checkpoints__8.orbax-checkpoint-tmp__state": "half"})
    keep(there / "a")
    assert json.loads(bucket.cat(f"{HOME}/{STATE}"))["files"].keys() == {
        "config",
        "a/DONE",
        "a/checkpoints/4/state",
    }
    machine("second")
    here = at_work()
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
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    write(folder, a="22", b="3")
    machine("first")
    assert files(working_copy(HOME)) == {"a": b"22", "b": b"3"}


def test_only_what_changed_is_sent_and_brought(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a="1", b="2")
    keep(folder)
    moved = []
    plain = copies._copy
    monkeypatch.setattr(copies, "_copy", lambda s, t: (moved.append(s.name), plain(s, t)))
    write(folder, b="33")
    keep(folder)
    # Beside the one that is there, and then in its place.
    assert [x for x in moved if x in "ab"] == ["b", "b"]
    moved.clear()
    keep(folder)
    assert not moved


def test_what_was_not_finished_at_home_is_not_brought(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    write(folder, b="2", c="3")
    with cut_off_at("c", monkeypatch), pytest.raises(KeyboardInterrupt):
        keep(folder)
    assert bucket.exists(f"{HOME}/b")
    machine("second")
    assert files(working_copy(HOME)) == {"a": b"1"}
    machine("first")
    keep(at_work())
    machine("third")
    assert files(working_copy(HOME)).keys() == {"a", "b", "c"}


class Died(BaseException):
    """The process is gone."""


def after(moments, monkeypatch):
    """The process dies behind so many files, with half of the next one at home, or none of it."""
    plain, left = copies._copy, iter(range(moments, -1, -1))

    def cut(source, target):
        if next(left):
            return plain(source, target)
        if source.name != f".{STATE}":  # What is as short as that arrives at once.
            target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        raise Died

    monkeypatch.setattr(copies, "_copy", cut)


@pytest.mark.parametrize("moments", range(9))
def test_what_is_at_home_is_whole_whenever_its_job_dies(bucket, machine, monkeypatch, moments):
    folder = at_work()
    write(folder, log="one line", sizes="long before", a__8__state="x", a__4__state="y")
    keep(folder)
    before = files(folder)
    write(folder, log="one line and another", sizes="short", a__12__state="z", a__DONE="")
    shutil.rmtree(folder / "a" / "4")
    now = files(folder)
    with monkeypatch.context() as patch:
        after(moments, patch)
        try:
            keep(folder)
        except Died:
            pass
        else:
            assert moments == 8, "more moments there are not"
    machine("second")
    found = files(working_copy(HOME))
    # Two new files, two that replace others, and the state come first.
    assert found == (before if moments < 5 else now)
    machine("first")
    assert files(at_work()) == now
    # Even what goes before it was ever sent.
    shutil.rmtree(folder / "a" / "12")
    write(folder, log="one line and another and one more")
    keep(folder)
    machine("third")
    assert files(working_copy(HOME)) == files(folder)
    assert not list(folder.parent.glob("*unsent*"))
    assert {x.removeprefix(f"{HOME}/") for x in bucket.find(HOME)} == {STATE, *files(folder)}


def test_who_reads_does_not_change_the_home_of_a_run_that_goes_on(bucket, machine, capsys):
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    machine("second")
    write(working_copy(HOME), report="of the reader")
    state = bucket.cat(f"{HOME}/{STATE}")
    keep_all()
    assert "stay in" in capsys.readouterr().err
    assert bucket.cat(f"{HOME}/{STATE}") == state
    machine("first")
    write(at_work(), **{FINISHED.removesuffix(".json"): "", "b": "2"})
    (folder / FINISHED).write_text("{}")
    keep(folder)
    # What was left is not lost where the run is brought anew.
    machine("second")
    here = working_copy(HOME)
    assert "report" not in files(here)
    assert files(here.with_name("a.unsent-1"))["report"] == b"of the reader"
    # A finished run has no job, and what is found about it goes home.
    write(here, found="by the reader")
    keep_all()
    machine("third")
    assert files(working_copy(HOME))["found"] == b"by the reader"


def test_what_a_job_of_this_machine_works_on_is_read_as_it_is(bucket, machine, tiny_run):
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    machine("elsewhere")
    write(at_work(), a="by another")
    keep_all()
    machine("first")
    write(folder, a="not sent yet")
    run = Run(folder, tiny_run)
    assert working_copy(HOME) == folder
    assert files(folder)["a"] == b"not sent yet"
    run.close()


def test_a_second_start_of_a_job_sends_nothing_of_the_first(bucket, machine, tiny_run, capsys):
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    state = bucket.cat(f"{HOME}/{STATE}")
    run = Run(folder, tiny_run)
    write(folder, half="d")
    machine("first")
    with pytest.raises(SystemExit, match="1"), reported():
        Run(working_copy(HOME), tiny_run)
    assert "in use" in capsys.readouterr().err
    assert bucket.cat(f"{HOME}/{STATE}") == state
    run.close()


def test_a_home_that_was_deleted_is_made_again(bucket, machine):
    folder = at_work()
    write(folder, a="1", b="2")
    keep(folder)
    bucket.rm(HOME, recursive=True)
    machine("first")
    write(at_work(), b="3")
    keep(folder)
    machine("second")
    assert files(working_copy(HOME)) == {"a": b"1", "b": b"3"}


def test_what_is_brought_is_of_one_state_while_its_job_saves(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a__4__state="4", log="4", same="s")
    keep(folder)
    job = storage._COPIES[folder.absolute()]
    machine("second")
    plain, saves = copies._copy, iter((8, 12))

    def saved_meanwhile(source, target):
        with monkeypatch.context() as patch:
            patch.setattr(copies, "_copy", plain)
            if source.name in ("state", "log") and (step := next(saves, None)):
                shutil.rmtree(folder / "a")
                write(folder, **{f"a__{step}__state": str(step), "log": f"4 to {step}"})
                job.take_home()
        plain(source, target)

    monkeypatch.setattr(copies, "_copy", saved_meanwhile)
    found = files(working_copy(HOME))
    assert found == files(folder) == {"a/12/state": b"12", "log": b"4 to 12", "same": b"s"}


def test_a_job_that_was_overtaken_while_it_sent_ends(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    job = storage._COPIES[folder.absolute()]
    machine("second")
    write(at_work(), a="of the second")
    plain = copies._copy

    def overtaken(source, target):
        plain(source, target)
        monkeypatch.setattr(copies, "_copy", plain)
        keep_all()

    write(folder, a="of the first")
    monkeypatch.setattr(copies, "_copy", overtaken)
    with pytest.raises(RunError, match="changed by another job"):
        job.take_home()
    machine("third")
    assert files(working_copy(HOME)) == {"a": b"of the second"}


def test_a_bringing_that_was_cut_off_begins_again(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a="1", b="2")
    keep(folder)
    machine("second")
    with cut_off_at("b", monkeypatch), pytest.raises(KeyboardInterrupt):
        working_copy(HOME)
    assert files(working_copy(HOME)) == {"a": b"1", "b": b"2"}


def test_two_jobs_with_one_home_do_not_mix(bucket, machine):
    first = at_work()
    write(first, a="1")
    keep(first)
    machine("second")
    second = at_work()
    write(second, a="by the second")
    keep(second)
    machine("first")
    storage._COPIES[first.absolute()] = copies.WorkingCopy(resolve_path(HOME), first)
    hold(first, True)
    write(first, b="by the first")
    with pytest.raises(RunError, match="changed by another job"):
        keep(first)
    # The next start goes on from there, and nothing is lost here.
    machine("first")
    assert files(working_copy(HOME)) == {"a": b"by the second"}
    assert files(first.with_name("a.unsent-1")) == {"a": b"1", "b": b"by the first"}


def test_a_home_that_cannot_be_reached_is_named(bucket, machine, monkeypatch):
    folder = at_work()
    write(folder, a="1")
    calls = []

    def broken(source, target):
        calls.append(target)
        raise ValueError("a library's own kind of error")

    monkeypatch.setattr(copies, "_copy", broken)
    with pytest.raises(RunError, match=r"runs/a/a cannot be reached \(a library's own.*resumes"):
        keep(folder)
    assert len(calls) == copies.TRIES
    assert files(folder) == {"a": b"1"}


@pytest.mark.usefixtures("unchecked")  # Stand-ins for a model.
def test_lists_that_were_written_go_home_before_all_are(
    bucket, machine, badge_listings, monkeypatch
):
    asked = []

    def three(architecture, params, builder, indices, **_):
        asked.append([*indices])
        for index in indices[:3]:
            yield [annotating.Written(index, "color: red", False, "color: red")]
        raise KeyboardInterrupt

    monkeypatch.setattr(annotating, "identity", lambda *_: "same")
    monkeypatch.setattr(annotating, "write_attributes", three)
    for name in ("first", "second"):
        machine(name)
        out = at_work() / "annotate" / "attributes.jsonl"
        builder = SimpleNamespace(listings=badge_listings)
        monkeypatch.setattr(annotating, "KEEP_EVERY", 0.0)
        with pytest.raises(KeyboardInterrupt):
            annotating.annotate(None, {}, builder, range(9), out, mesh=None)
        assert not out.exists()
    assert asked == [[*range(9)], [*range(3, 9)]]


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
    folder = at_work()
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


OUTSIDE = [
    "../../planted",
    "a/../../planted",
    "/tmp/planted",
    "",
    ".",
    "a//b",
    "a/",
    "a\\..\\b",
    "c:/planted",
    "a\0b",
    "a\x1b[2J",
    ".lock",
    "a/.home.json",
    STATE,
    "a/" * 600 + "b",
    "4.orbax-checkpoint-tmp-1/d",
]
SENT = {"sent": "s1", "size": 4}


def plant(bucket, state):
    bucket.pipe(f"{HOME}/evil", b"evil")
    text = state if isinstance(state, str) else json.dumps(state)
    bucket.pipe(f"{HOME}/{STATE}", text.encode())


def everything(folder):
    return {x: x.lstat().st_mtime_ns for x in folder.rglob("*") if not x.is_dir()}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["name", "at", "rubbish"])
def test_a_home_names_nothing_outside_of_it(bucket, machine, tmp_path, name, kind):  # S2
    state = {
        "name": {"state": "s1", "files": {name: SENT | {"at": "evil"}}},
        "at": {"state": "s1", "files": {"a": SENT | {"at": name}}},
        "rubbish": {"state": "s1", "files": {}, "rubbish": [name]},
    }[kind]
    plant(bucket, state)
    before = everything(tmp_path)
    with pytest.raises(RunError, match=rf"{STATE}: .*no name of a file.*another --out") as caught:
        working_copy(HOME)
    assert "runs/a" in str(caught.value)
    locks = {tmp_path / "first/s3/bucket/runs/.a.lock"}
    assert everything(tmp_path).keys() - locks == before.keys()
    assert bucket.cat(f"{HOME}/evil") == b"evil"


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "3",
        {"state": 3, "files": {}},
        {"state": "s1", "files": None},
        {"state": "s1", "files": []},
        {"state": "s1", "files": {"a": None}},
        {"state": "s1", "files": {"a": {"sent": "s1"}}},
        {"state": "s1", "files": {"a": {"sent": "s1", "size": "4"}}},
        {"state": "s1", "files": {"a": {"sent": "s1", "size": -4}}},
        {"state": "s1", "files": {"a": SENT, "a/b": SENT}},
        {"state": "s1", "files": {}, "rubbish": "abc"},
        {"state": "../s1", "files": {}},
        {"state": "bringing", "files": {}},
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_broken_state_of_a_home_is_named(bucket, machine, tmp_path, state):  # F17
    plant(bucket, state)
    with pytest.raises(RunError, match=rf"runs/a/{STATE}.*another --out"):
        working_copy(HOME)
    assert not [x for x in tmp_path.rglob("*") if x.is_file() and not x.name.endswith(".lock")]


def test_a_link_in_a_working_copy_is_not_followed_out_of_it(bucket, machine, tmp_path):  # S2
    folder = at_work()
    write(folder, a="1", rar__b="2")
    keep(folder)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "link").symlink_to(secret)
    (folder / "zero").symlink_to("/dev/zero")
    write(folder, a="1 and more")
    keep(folder)
    assert {x.removeprefix(f"{HOME}/") for x in bucket.find(HOME)} == {STATE, "a", "rar/b"}
    machine("second")
    second = storage.working_folder(HOME)
    second.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (second / "rar").symlink_to(outside)
    with pytest.raises(RunError, match=r"rar is a link that leads out of.*remove it"):
        working_copy(HOME)
    assert not any(outside.iterdir())


def test_names_that_no_home_may_have_are_not_sent(bucket, machine):
    folder = at_work()
    write(folder, a="1")
    (folder / "a\\b").write_text("2")
    (folder / STATE).write_text("{}")
    keep(folder)
    machine("second")
    assert files(working_copy(HOME)) == {"a": b"1"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (copies.KNOWN, '{"state": "s", "files": {"../x": {"sent": "s", "stamp": [1, 2]}}}'),
        (copies.KNOWN, '{"state": "s", "files": {"x": {"sent": "s", "stamp": [1]}}}'),
        (copies.KNOWN, "[]"),
        (copies.NEXT, "\xff"),
        (copies.SENDING, '["../x"]'),
        (copies.SENDING, "{}"),
    ],
)
def test_a_broken_note_in_a_working_copy_is_named(bucket, machine, name, text):  # F17
    folder = at_work()
    write(folder, a="1")
    keep(folder)
    write(folder, a="2")
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=rf"{name}.*remove the working copy"):
        keep(folder)
