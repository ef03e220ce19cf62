"""A model in training: the parameters that learn, and those that only take part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from afmrl_jax.config import LoraConfig, ModelSettings
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.folder import load_model
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.parallel.param_paths import TOWER, is_adapter
from afmrl_jax.parallel.sharding import place, shardings


def learns(name: str, trained: Literal["all", "decoder", "lora"]) -> bool:
    """Whether a parameter is one that learns, see `ModelSettings.trained`."""
    if trained == "lora":
        return is_adapter(name)
    return trained == "all" or not name.startswith(TOWER)


def tower_trains(
    trained: Literal["all", "decoder", "lora", "nothing"], lora: LoraConfig | None
) -> bool:
    """Whether gradients flow into the vision tower of a model with those adapters."""
    return trained == "all" or (trained == "lora" and lora is not None and lora.adapts_tower)


@dataclass(frozen=True)
class Partition:
    """A model whose parameters are divided in two.

    Only those that learn have gradients, optimizer moments and a place in the checkpoints; no
    gradient of the others is ever computed, nor what only leads to one.
    """

    architecture: Architecture
    trainable: Params
    """float32"""
    frozen: Params
    """In `ModelSettings.frozen_dtype`; adapters in float32, as they are stored."""

    @classmethod
    def of(
        cls, architecture: Architecture, params: Params, settings: ModelSettings, mesh: Mesh
    ) -> Partition:
        """Divide a model and lay both parts out on `mesh`."""
        own = {name: learns(name, settings.trained) for name in params}
        trainable = {n: x.astype(jnp.float32) for n, x in params.items() if own[n]}
        frozen = {
            n: x.astype(jnp.float32 if is_adapter(n) else settings.frozen_dtype)
            for n, x in params.items()
            if not own[n]
        }
        return cls(architecture, place(trainable, mesh), place(frozen, mesh))

    def whole(self, trainable: Params) -> Params:
        """All parameters, with the learning ones as they are now."""
        return {**self.frozen, **trainable}


def read_model(folder: Path, settings: ModelSettings, mesh: Mesh) -> tuple[Architecture, Params]:
    """A model from disk, each tensor straight to its place on `mesh`."""
    return load_model(folder, shardings=partial(shardings, mesh=mesh), execution=settings.execution)


def pretrained(
    folder: Path, settings: ModelSettings, mesh: Mesh, seed: int
) -> tuple[Architecture, Params]:
    """The model of a folder, with fresh adapters where they are what learns.

    Raises:
        ConfigError: the folder holds a model of another family than the settings name.
        RunError: the folder cannot be read.
    """
    architecture, params = read_model(folder, settings, mesh)
    found = architecture.config.family
    if settings.family not in (None, found):
        raise ConfigError(
            f"{folder} holds a {found} model and not a {settings.family}; leave the "
            "setting family out, or name other weights"
        )
    if settings.trained == "lora" and architecture.config.lora is None:
        architecture = with_lora(architecture, settings.lora)
        params = place(add_lora(architecture, params, seed), mesh)
    return architecture, jax.block_until_ready(params)
