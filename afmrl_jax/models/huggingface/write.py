"""Weights in the layout of a Hugging Face folder, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.names import HubTensor, hub_tensors, published_name
from afmrl_jax.models.huggingface.read import INDEX, SINGLE
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, write_tensors
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.runtime.files import write_json

SHARD_BYTES = 5 * 10**9
"""Largest file, as transformers cuts them."""


def save_params(
    folder: Path, architecture: Architecture, params: Params, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model.safetensors`, or several files and their index, into an existing folder.

    Args:
        folder: the caller makes it whole or absent.
        architecture: of `params`; adapters are left out.
        params: each tensor keeps its type.
        shard_bytes: largest size of a file, unless a single tensor is larger.
    """
    tensors = [
        TensorToWrite(
            published_name(t.name, architecture.config.family),
            t.shape,
            np.dtype(params[t.ours].dtype),
            partial(_fetch, params, t),
        )
        for t in hub_tensors(architecture)
    ]
    files = divide(tensors, shard_bytes)
    if len(files) == 1:
        write_tensors(folder / SINGLE, tensors)
        return
    weight_map: dict[str, str] = {}
    for number, content in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_tensors(folder / name, content)
        weight_map |= {t.name: name for t in content}
    total = {"total_size": sum(t.nbytes for t in tensors)}
    write_json(folder / INDEX, {"metadata": total, "weight_map": dict(sorted(weight_map.items()))})


def divide(tensors: Sequence[TensorToWrite], limit: int) -> list[list[TensorToWrite]]:
    """The tensors by file, in order; a file holds more than `limit` bytes only for one tensor."""
    files: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files


def _fetch(params: Params, tensor: HubTensor) -> np.ndarray:
    """A tensor on the host, in the file's layout."""
    value = params[tensor.ours]
    array = to_host(value if tensor.layer is None else value[tensor.layer])
    return array if tensor.kind == "plain" else array.T.reshape(tensor.shape)
