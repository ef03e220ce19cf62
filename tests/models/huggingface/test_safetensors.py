"""Safetensors files: what the library reads of ours, and what we refuse to read."""

import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from afmrl_jax.errors import RunError
from afmrl_jax.models.huggingface.read import _copy
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors


def write(path, tensors):
    write_tensors(
        path, [TensorToWrite(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()]
    )


@pytest.fixture
def tensors(rng):
    matrix = rng.normal(size=(5, 3)).astype(np.float32)
    return {
        "matrix": matrix,
        "transposed": matrix.T,
        "low": matrix.astype(ml_dtypes.bfloat16),
        "half": matrix.astype(np.float16),
        "double": matrix.astype(np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.5, np.float32),
    }


def test_what_is_written_is_read_bit_for_bit(tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, tensors)
    stored = stored_tensors(path)
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        found = stored[name].open()
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
        np.testing.assert_array_equal(_copy(stored[name], None), value)


def test_the_library_reads_the_same(tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, tensors)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name, value in tensors.items():
            if name != "low":  # Its NumPy interface knows no bfloat16.
                np.testing.assert_array_equal(file.get_tensor(name), value)


def test_files_of_the_library_are_read(tensors, tmp_path):
    del tensors["low"], tensors["transposed"]
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    for name, stored in stored_tensors(path).items():
        np.testing.assert_array_equal(stored.open(), tensors[name])


def test_parts_are_copied_block_by_block(tmp_path, monkeypatch, rng):
    monkeypatch.setattr("afmrl_jax.models.huggingface.read.BLOCK", 64)
    value = rng.normal(size=(37, 6)).astype(np.float32)
    write(tmp_path / "x.safetensors", {"x": value})
    stored = stored_tensors(tmp_path / "x.safetensors")["x"]
    np.testing.assert_array_equal(_copy(stored, None), value)
    part = (slice(3, 30), slice(2, 5))
    np.testing.assert_array_equal(_copy(stored, part), value[part])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
def test_integers_are_refused_as_quantised(dtype, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"fine": np.ones(2, np.float32), "q_weight": np.ones(4, dtype)}, path)
    with pytest.raises(RunError, match=r"q_weight has type .*quantised") as error:
        stored_tensors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_truncated_files_are_errors_that_name_them(tensors, tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write(path, tensors)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"x\.safetensors cannot be read.*download"):
        stored_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 999]}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}',
    ],
)
def test_headers_that_lie_are_errors(header, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(RunError, match="cannot be read"):
        stored_tensors(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_unread(name, tmp_path):
    with pytest.raises(RunError, match=r"any code.*safe_serialization"):
        stored_tensors(tmp_path / name)


def test_one_tensor_is_made_at_a_time(tmp_path):
    made = []

    def make(number):
        made.append(number)
        return np.full(3, number, np.float32)

    todo = [
        TensorToWrite(str(n), (3,), np.dtype(np.float32), lambda n=n: make(n)) for n in range(4)
    ]
    assert made == []
    write_tensors(tmp_path / "x.safetensors", todo)
    assert made == [0, 1, 2, 3]
