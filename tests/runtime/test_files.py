"""Files that are whole or absent."""

import errno
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import atomic_path, is_disk_full, locked, open_lock, write_text


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
    assert is_disk_full(sqlite3.OperationalError("database or disk is full"))
    assert not is_disk_full(OSError(errno.EACCES, "no"))
    assert not is_disk_full(None)


WRITER = """
import sys
from afmrl_jax.runtime.files import write_text
for number in range(int(sys.argv[3])):
    write_text(sys.argv[1], sys.argv[2] * 2_000_000)
"""


# S3
def test_no_read_is_torn_while_two_processes_write(tmp_path):
    path = tmp_path / "shared.txt"
    write_text(path, "a" * 2_000_000)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter, "60"]) for letter in "ab"
    ]
    reads = 0
    while any(x.poll() is None for x in writers):
        found = path.read_text()
        reads += 1
        assert len(found) == 2_000_000
        assert len(set(found)) == 1
    assert [x.returncode for x in writers] == [0, 0]
    assert reads > 10
    assert [x.name for x in tmp_path.iterdir()] == ["shared.txt"]


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path):
    folder = tmp_path / "folder"

    def write(text):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / "text").write_text(text)

    write("0")
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(lambda: [write(str(x)) for x in range(200)])
        while not replacing.done():
            assert folder.is_dir()
        replacing.result()
    assert (folder / "text").read_text() == "199"
    assert list(tmp_path.iterdir()) == [folder]


# S3
def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_path(path) as temporary:
        (mine := temporary).write_text("half")
        own, process = f"-{os.getpid()}-", subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        dead = temporary.with_name(temporary.name.replace(own, f"-{process.pid}-"))
        dead.write_text("left behind")
        write_text(path, "another")
        assert mine.exists()
        assert not dead.exists()
    assert path.read_text() == "half"


def test_what_a_killed_process_left_in_a_block_inside_another_is_removed_too(tmp_path):
    path = tmp_path / "folder"
    with atomic_path(path) as outer, atomic_path(outer) as inner:
        own, process = f"-{os.getpid()}-", subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        for left in (outer, inner):
            left.with_name(left.name.replace(own, f"-{process.pid}-")).mkdir()
        inner.mkdir()
    write_text(path.with_name("folder.txt"), "beside")
    assert len(list(tmp_path.iterdir())) == 4
    with atomic_path(path) as temporary:
        temporary.mkdir()
    assert {x.name for x in tmp_path.iterdir()} == {"folder", "folder.txt"}


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x"


# S6
def test_a_lock_follows_no_link_and_empties_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(RunError, match=r"\.lock should be a lock file and is a link"):
        open_lock(tmp_path / ".lock")
    with locked(precious, waiting=lambda: None):
        pass
    assert precious.read_text() == "kept"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="is a pipe"):
        open_lock(tmp_path / "pipe")
