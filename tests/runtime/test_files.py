"""Files that are whole or absent."""

import errno

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import atomic_path, is_disk_full, read_json, read_lines, write_json


def fail_half_way(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with pytest.raises(ZeroDivisionError):
        fail_half_way(path, ZeroDivisionError())
    assert not list((tmp_path / "deep").iterdir())
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_folder_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_full_disk_names_the_file_and_cleans_up(tmp_path):
    with pytest.raises(RunError, match=r"no space left.*file\.txt"):
        fail_half_way(tmp_path / "file.txt", OSError(errno.ENOSPC, "No space left on device"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_recognised_behind_other_errors():
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EACCES, "no"))
    assert not is_disk_full(None)


def test_broken_json_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2]}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_lines_are_whole_and_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    # A title may hold what Unicode calls a line separator.
    path.write_bytes("a\u2028b\nc\x85d\nto".encode())
    assert read_lines(path) == ["a\u2028b", "c\x85d"]
    assert path.read_bytes().endswith(b"\nto")
    assert read_lines(path, repair=True) == ["a\u2028b", "c\x85d"]
    assert path.read_bytes() == "a\u2028b\nc\x85d\n".encode()
