"""A finished stage counts only while its record and its outputs are what it wrote."""

import dataclasses
import json
from pathlib import Path

import pytest

from afmrl_jax.config import AgclConfig, RunConfig, fingerprint, from_dict, to_dict
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import file_hash
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.training.run_directory import Done, Run, check_finished

OLD = Path(__file__).parents[1] / "config" / "run_35b8f45"


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run", RunConfig(catalogue="x"))
    yield run
    run.close()


def work(folder):
    (folder / "result.txt").write_text("seven")


def do(run, outputs=("result.txt",)):
    return run.stage("first", {"seed": 0}, list(outputs), work)


def test_a_finished_stage_is_not_done_again(run):
    folder = do(run)
    (folder / "result.txt").touch()
    run.did_something = False
    assert do(run) == folder
    assert not run.did_something


@pytest.mark.parametrize("record", ["DONE.json", "inputs.json"])
def test_whole_numbers_where_numbers_belong_are_the_same_inputs(tmp_path, record):
    """As older versions recorded the settings of a notebook, in the config and in the inputs."""
    config = dataclasses.replace(RunConfig(), agcl=AgclConfig(gamma=2, temperature=1))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    inputs = {"settings": to_dict(config.agcl)}
    first = {"inputs": inputs, "fingerprint": fingerprint(inputs)}
    path = tmp_path / "first" / record
    path.parent.mkdir()
    (path.parent / "result.txt").write_text("seven")
    done = {"outputs": {"result.txt": file_hash(path.parent / "result.txt")}, "seconds": 1.0}
    path.write_text(json.dumps(first | (done if record == "DONE.json" else {})))
    today = from_dict(RunConfig, json.loads((tmp_path / "config.json").read_text()))
    now = {"settings": to_dict(today.agcl)}
    assert fingerprint(now) != first["fingerprint"]
    run = Run(tmp_path, today)
    run.stage("first", now, ["result.txt"], work)
    assert run.did_something == (record != "DONE.json")
    kept = read_checked(path.parent / "DONE.json", Done)
    assert (kept.inputs, kept.fingerprint) == (inputs, first["fingerprint"])
    now["settings"]["gamma"] = 2.5
    with pytest.raises(RunError, match=r"other inputs \(settings\.gamma: 2 -> 2\.5\)"):
        run.stage("first", now, ["result.txt"], work)
    run.close()


# S8
@pytest.mark.parametrize(
    ("content", "message"), [("eight", "has changed since"), (None, "is missing")]
)
def test_changed_and_lost_outputs_are_found(run, content, message):
    path = do(run) / "result.txt"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RunError, match=rf"result\.txt {message}.*put it back, or delete .*first"):
        do(run)


# S8
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"inputs": {}, "fingerprint": 3}'])
@pytest.mark.parametrize("name", ["DONE.json", "inputs.json"])
def test_a_broken_record_says_what_to_delete(run, name, text):
    (do(run) / name).write_text(text)
    with pytest.raises(RunError, match=rf"{name}.*delete .*first and start"):
        do(run)


# F2
def test_a_record_that_is_no_text(run):
    folder = do(run)
    (folder / "DONE.json").write_bytes(b"\xac" + (folder / "DONE.json").read_bytes())
    with pytest.raises(RunError, match=r"DONE\.json is not UTF-8"):
        run.output_hash("first", "result.txt")


# S6
def test_the_lock_of_a_run_follows_no_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(RunError, match=r"\.lock should be a lock file and is a link.*remove it"):
        Run(tmp_path / "run", RunConfig(catalogue="x"))
    assert precious.read_text() == "kept"


# S3
def test_a_run_in_use_is_not_opened_again(run):
    with pytest.raises(RunError, match="is in use by another process; wait for it"):
        Run(run.folder, run.config)
    run.close()
    Run(run.folder, run.config).close()


# S8
def test_an_output_without_a_hash_is_not_taken_on_trust(run):
    folder = do(run)
    (folder / "more.txt").write_text("more")
    with pytest.raises(RunError, match=r"no hash of more\.txt"):
        do(run, ("result.txt", "more.txt"))
    with pytest.raises(RunError, match=r"no hash of more\.txt"):
        run.output_hash("first", "more.txt")


# F17
def test_a_device_in_the_place_of_an_output_is_not_read(run):
    path = do(run) / "result.txt"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(RunError, match="device"):
        do(run)


def test_a_config_that_is_no_object(run):
    (run.folder / "config.json").write_text("[]")
    with pytest.raises(RunError, match=r"config\.json"):
        run._check_config()


@pytest.mark.parametrize("path", sorted(OLD.glob("*.DONE.json")), ids=lambda x: x.name)
def test_records_of_older_versions_are_read(path):
    assert read_checked(path, Done).outputs


def test_a_run_from_elsewhere_is_checked_without_its_config(run):
    check_finished(do(run), ["result.txt"])


def test_a_run_goes_on_with_the_rematerialization_it_began_with(tmp_path):
    """`auto` leaves the choice open, and was not the preset's choice in earlier versions."""
    today = RunConfig.pretrained()
    older = to_dict(today)
    for model in ("embedder", "generator"):
        older[model]["execution"]["remat"] = "full"
    (tmp_path / "config.json").write_text(json.dumps(older))
    run = Run(tmp_path, today)
    run.close()
    assert {run.config.embedder.execution.remat, run.config.generator.execution.remat} == {"full"}
    chosen = dataclasses.replace(today.embedder.execution, remat="dots")
    other = dataclasses.replace(
        today, embedder=dataclasses.replace(today.embedder, execution=chosen)
    )
    with pytest.raises(RunError, match=r"embedder\.execution\.remat"):
        Run(tmp_path, other)
