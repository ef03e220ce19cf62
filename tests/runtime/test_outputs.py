"""What a command may replace, and who writes it."""

import json
import os

import pytest

from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.runtime import files, outputs
from afmrl_jax.runtime.outputs import only_writer, require_own_output


def is_own(path):
    return outputs.whole_record(path).get("own") is True


def own_files(folder):
    return {"mark", "inner/data"} if (folder / "mark").is_file() else None


def refused(out, message, **kinds):
    with pytest.raises(ConfigError, match=message) as caught:
        require_own_output(out, "afmrl try", **kinds)
    assert "choose" in str(caught.value) or "name one" in str(caught.value)


# S1
def test_a_file_is_replaced_only_by_what_wrote_it(tmp_path):
    out = tmp_path / "out.json"
    require_own_output(out, "afmrl try", file=is_own)
    for content in (b"", b'{"own": true}'):
        out.write_bytes(content)
        require_own_output(out, "afmrl try", file=is_own)
    for content in (b'{"listing_id": 1}', b"[]", b"\xff", b"[" * 100_000):
        out.write_bytes(content)
        refused(out, "not written by `afmrl try`.*starts with", file=is_own)
        assert out.read_bytes() == content
    refused(tmp_path, "is a folder", file=is_own)


def test_a_folder_is_replaced_only_with_nothing_else_in_it(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    require_own_output(out, "afmrl try", folder=own_files)
    for n in range(5):
        (out / f"photo-{n}.jpg").touch()
    refused(
        out,
        r"not written by .* photo-0\.jpg, photo-1\.jpg, photo-2\.jpg and 2 more",
        folder=own_files,
    )
    refused(out, "exists; choose another --out.*it holds photo-0")
    for path in out.iterdir():
        path.unlink()
    (out / "inner").mkdir()
    for name in ("mark", "inner/data"):
        (out / name).touch()
    require_own_output(out, "afmrl try", folder=own_files)
    (out / "inner" / "link").symlink_to("nowhere")
    refused(out, "holds inner/link, not written by", folder=own_files)
    file = tmp_path / "file"
    file.write_text("mine")
    refused(file, "not written by", folder=own_files)


def test_devices_and_object_storage_are_no_outputs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a pipe or a device", file=is_own)
    with pytest.raises(ConfigError, match="write to this machine"):
        require_own_output(outputs.Path("s3://bucket/x"), "afmrl try", file=is_own)


def test_records_of_broken_files_are_empty(tmp_path):
    path = tmp_path / "x"
    for content in (b"", b"\n", b"7", b'{"a": ', b"\xff\n"):
        path.write_bytes(content)
        assert outputs.first_record(path) == outputs.whole_record(path) == {}
    assert outputs.first_record(tmp_path / "missing") == {}
    path.write_text(json.dumps({"a": 1}) + "\nrubbish")
    assert outputs.first_record(path) == {"a": 1}


# S3
def test_one_process_writes_and_the_lock_goes_with_it(tmp_path):
    out = tmp_path / "new" / "out"
    with only_writer(out, "afmrl try"):
        told = pytest.raises(RunError, match="another `afmrl try` is writing")
        with told, only_writer(out, "afmrl try"):
            pytest.fail("two at once")
        with only_writer(out.with_name("other"), "afmrl try"):
            pass
    assert not list(out.parent.iterdir())
    # As a killed process leaves it.
    (out.parent / ".out.lock").touch()
    with only_writer(out, "afmrl try"):
        pass
    assert not list(out.parent.iterdir())


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    out, take, calls = tmp_path / "out", files.take_lock, []

    def slow(file):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".out.lock").unlink()
        return take(file)

    monkeypatch.setattr(files, "take_lock", slow)
    with only_writer(out, "afmrl try"):
        assert (tmp_path / ".out.lock").exists()
    assert len(calls) == 2
