"""A model on disk: `model.safetensors` under hub names and `config.json`."""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.config_json import from_dict, to_dict
from afmrl_jax.errors import RunError
from afmrl_jax.files import atomic_path, read_json, write_json
from afmrl_jax.model_config import QwenVLConfig
from afmrl_jax.models.functional import Architecture, Params
from afmrl_jax.models.weights import load_safetensors, save_safetensors


def save_model(folder: Path, architecture: Architecture, params: Params) -> Path:
    """Write weights and config as one folder, whole or not at all."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_safetensors(architecture.bind(params), temporary / "model.safetensors")
        write_json(temporary / "config.json", to_dict(architecture.config))
    return folder


def load_model(folder: Path) -> tuple[Architecture, Params]:
    """Read what `save_model` wrote."""
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no model (config.json is missing); run its stage first")
    architecture = Architecture.of(from_dict(QwenVLConfig, read_json(path)))
    model = architecture.bind(architecture.init(0))
    load_safetensors(model, folder / "model.safetensors")
    return architecture, architecture.flatten(model)
