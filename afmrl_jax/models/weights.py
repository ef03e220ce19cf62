"""Weights under the hub's names: safetensors in and out. Pickles are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from afmrl_jax.errors import RunError
from afmrl_jax.files import atomic_path
from afmrl_jax.models.qwen_vl import QwenVL

_RENAMES = (
    (r"^visual_tower\.", "visual."),
    (r"\.mlp_(\d)\.", r".mlp.\1."),
    (r"\.kernel$", ".weight"),
    (r"\.scale$", ".weight"),
    (r"embed_tokens$", "embed_tokens.weight"),
    (r"^lm_head$", "lm_head.weight"),
)


def _hub_name(path: tuple[object, ...]) -> str:
    name = ".".join(str(part) for part in path)
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _leaves(model: QwenVL) -> dict[str, tuple[str, nnx.Variable]]:
    """Hub name -> (last part of our name, variable)."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {_hub_name(path): (str(path[-1]), variable) for path, variable in state}


def _to_hub(model: QwenVL, name: str, kind: str, value: np.ndarray) -> np.ndarray:
    if name == "visual.patch_embed.proj.weight":
        vision = model.config.vision
        side, frames = vision.patch_size, vision.temporal_patch_size
        return np.ascontiguousarray(value.T).reshape(-1, vision.in_channels, frames, side, side)
    return np.ascontiguousarray(value.T) if kind in ("kernel", "lm_head") else value


def _from_hub(name: str, kind: str, value: np.ndarray) -> np.ndarray:
    if name == "visual.patch_embed.proj.weight":
        return value.reshape(value.shape[0], -1).T
    return value.T if kind in ("kernel", "lm_head") else value


def to_hub_tensors(model: QwenVL) -> dict[str, np.ndarray]:
    """All weights by hub name, in the hub's layout ([out, in] for linear maps)."""
    return {
        name: _to_hub(model, name, kind, np.asarray(variable[...]))
        for name, (kind, variable) in _leaves(model).items()
    }


def load_hub_tensors(model: QwenVL, tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Put tensors into `model`.

    Raises:
        RunError: lists every missing, extra and misshapen tensor; `model` is then unchanged.
    """
    leaves = _leaves(model)
    problems = [f"missing {name}" for name in leaves if name not in tensors]
    problems += [f"extra {name}" for name in tensors if name not in leaves]
    fresh = {}
    for name, (kind, variable) in leaves.items():
        if name in tensors:
            value = _from_hub(name, kind, np.asarray(tensors[name]))
            if value.shape != variable.shape:
                problems.append(f"{name} has shape {tensors[name].shape}")
            fresh[name] = value
    if problems:
        raise RunError(f"{where} does not fit the model: " + "; ".join(problems))
    for name, (_, variable) in leaves.items():
        variable[...] = jnp.asarray(fresh[name], variable.dtype)


def save_safetensors(model: QwenVL, path: Path) -> None:
    """Write all weights to one file, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file(to_hub_tensors(model), temporary)


def load_safetensors(model: QwenVL, path: Path) -> None:
    """Read weights that fit `model` exactly.

    Raises:
        RunError: not a safetensors file (pickles are refused), or its tensors do not fit.
    """
    if path.suffix != ".safetensors":
        raise RunError(f"{path}: only .safetensors weights are read; convert the file first")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read as safetensors: {error}") from error
    load_hub_tensors(model, tensors, str(path))
