"""Safetensors files: single tensors read from the mapped file, whole files written as a stream.

The `safetensors` library reads and checks the headers. Tensors are mapped here, one at a time, so
that the host never holds more than one; its NumPy interface knows no bfloat16, and its writer wants
all tensors of a file in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import is_writer
from afmrl_jax.runtime.json_files import open_regular, parse_json
from afmrl_jax.types import JsonObject

DTYPES: JsonObject = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
"""Float types of the format that models are stored in."""
MAX_HEADER = 10**8
"""Bytes of a header; the library reads no longer one, either."""
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    offset: int
    """Bytes from the start of the file."""
    shape: tuple[int, ...]
    dtype: np.dtype

    def open(self) -> np.ndarray:
        """The tensor as a read-only map of the file; what is not touched is not read."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; no data is read.

    Raises:
        RunError: not a whole safetensors file, or of a type that is no float.
    """
    if path.suffix != ".safetensors":
        raise RunError(
            f"{path}: only .safetensors weights are read, for a pickle (.bin, .pt) can run any "
            "code; convert it, for example with `save_pretrained(safe_serialization=True)`"
        )
    length, header = _header(path)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise RunError(
                f"{path}: tensor {name} has type {entry['dtype']}; only "
                f"{', '.join(DTYPES)} are read (quantised weights are not supported)"
            )
        begin = 8 + length + entry["data_offsets"][0]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        found[name] = StoredTensor(path, begin, tuple(entry["shape"]), dtype)
    return found


def _header(path: Path) -> tuple[int, JsonObject]:
    """Length in bytes and content of a file's header."""
    remedy = "download or copy it again"
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
            with safe_open(path, "numpy"):
                pass  # The library checks that header, offsets and length agree.
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise RunError(f"{path} cannot be read as safetensors ({error}); {remedy}") from error
    # The library takes the last of two tensors of one name.
    return length, parse_json(text, f"{path}: its header", remedy=remedy)


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose numbers are made when they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, one tensor in memory at a time.

    Args:
        path: the file; the caller sees to it that a half-written one is not taken for whole.
        tensors: in the order in which they are stored.
        metadata: texts in the header; transformers wants `{"format": "pt"}`.
    """
    header: JsonObject = {"__metadata__": dict(metadata or {"format": "pt"})}
    place = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    if not is_writer():
        # Tensors in parts on many processes are brought together by all of them.
        for tensor in tensors:
            tensor.make()
        return
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The data starts at a multiple of eight bytes.
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            # `ascontiguousarray` would give a scalar an axis.
            value = np.asarray(tensor.make(), order="C")
            assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype), tensor.name
            file.write(value.reshape(-1).view(np.uint8).data)
