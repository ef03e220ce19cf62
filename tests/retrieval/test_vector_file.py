"""Vectors in a file: what was written stays, and nothing else is taken for it."""

import errno

import numpy as np
import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval import vector_file as module
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.vector_file import VectorFile


def test_a_file_goes_on_behind_its_last_rows(tmp_path, rng):
    rows = rng.normal(size=(10, 3)).astype(np.float32)
    first = VectorFile(tmp_path / "v", (10, 3), "key")
    first.append(rows[:4], ["a" * 32, "b", "c", "d"])
    first.values[4] = 7  # a row that was half written when the process died
    again = VectorFile(tmp_path / "v", (10, 3), "key")
    assert again.done == 4
    assert again.sources == ["a" * 32, "b", "c", "d"]
    again.append(rows[4:], [*"efghij"])
    assert again.sources[4:] == [*"efghij"]
    np.testing.assert_array_equal(np.load(tmp_path / "v" / "vectors.npy"), rows)
    with pytest.raises(RunError, match="more vectors than the 10"):
        again.append(rows[:1], ["k"])


@pytest.mark.parametrize(("shape", "key"), [((10, 3), "other"), ((11, 3), "key")])
def test_another_embedder_or_catalogue_begins_anew(tmp_path, shape, key):
    VectorFile(tmp_path / "v", (10, 3), "key").append(np.ones((4, 3), np.float32), [*"abcd"])
    found = VectorFile(tmp_path / "v", shape, key)
    assert found.done == 0
    assert found.values.shape == shape


@pytest.fixture
def full_disk(monkeypatch):
    def full(file, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_allocate", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_said_before_anything_is_embedded(tmp_path):
    with pytest.raises(RunError, match="no space left"):
        VectorFile(tmp_path / "v", (10, 3), "key")


@pytest.mark.usefixtures("full_disk")
def test_an_index_that_does_not_fit_on_the_disk_is_said_and_not_half_there(tmp_path, rng):
    # Written to a mapped file without space, it would end the process with SIGBUS.
    vectors = rng.normal(size=(10, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ExactIndex([*"abcdefghij"], vectors, "e")
    with pytest.raises(RunError, match="no space left"):
        index.save(tmp_path / "index")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("progress.json", b"[]", "progress.json"),
        ("progress.json", b'{"shape": [10, 3], "key": "key", "done": 11}', "does not fit"),
        ("vectors.npy", b"cut", "is damaged"),
        ("sources.npy", b"cut", "is damaged"),
    ],
)
def test_damaged_work_is_said_with_what_to_do(tmp_path, name, content, message):
    # F13
    VectorFile(tmp_path / "v", (10, 3), "key").append(np.ones((4, 3), np.float32), [*"abcd"])
    (tmp_path / "v" / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{message}.*(delete|again)"):
        VectorFile(tmp_path / "v", (10, 3), "key")


def test_only_its_own_files_are_removed(tmp_path):
    # S1
    VectorFile(tmp_path / "v", (10, 3), "key")
    (tmp_path / "v" / "notes").write_text("mine")
    VectorFile(tmp_path / "v", (10, 3), "other")
    module.remove_vectors(tmp_path / "v")
    assert [x.name for x in (tmp_path / "v").iterdir()] == ["notes"]
