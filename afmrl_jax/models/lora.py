"""Low-rank adapters: added to a model, told apart from its weights, merged into them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from afmrl_jax.config import LoraConfig, LoraMap
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.qwen_vl.adapters import fresh_magnitudes, merged_kernel, scaled
from afmrl_jax.parallel.param_paths import is_adapter


def with_lora(
    architecture: Architecture, lora: LoraConfig | None, maps: tuple[LoraMap, ...] = ()
) -> Architecture:
    """The architecture with (other) adapters, or without any.

    Args:
        architecture: of the model.
        lora: what its adapters are; None for none.
        maps: linear maps whose adapters are of other ranks and alphas.

    Raises:
        ConfigError: the vision tower lacks a map that adapters are wanted on.
    """
    config = dataclasses.replace(architecture.config, lora=lora, lora_maps=maps)
    return Architecture.of(config, architecture.execution)


def add_lora(architecture: Architecture, params: Params, seed: int) -> Params:
    """`params` and fresh adapters, float32, which change nothing yet.

    Args:
        architecture: with adapters.
        params: of its other parameters.
        seed: of the random half (`lora_a`, normal with deviation 1 / sqrt(inputs)); the other half
            is zero, so that training starts from the model as it is. DoRA's magnitudes are those
            of the kernels.
    """
    fresh = {}
    key = jax.random.key(seed)
    for number, (name, struct) in enumerate(architecture.shapes.items()):
        if name.endswith("lora_a"):
            noise = jax.random.normal(jax.random.fold_in(key, number), struct.shape, jnp.float32)
            fresh[name] = noise * struct.shape[-2] ** -0.5
        elif name.endswith("lora_b"):
            fresh[name] = jnp.zeros(struct.shape, jnp.float32)
    return {**params, **fresh, **fresh_magnitudes(params, architecture.shapes)}


def merge_lora(architecture: Architecture, params: Params) -> tuple[Architecture, Params]:
    """The same function without adapters: kernel + scale * lora_a lora_b, and as DoRA stretches it.

    It is formed in float32 and stored in the kernel's type.
    """
    merged = {name: value for name, value in params.items() if not is_adapter(name)}
    if architecture.config.lora is None:
        return architecture, merged

    ready = scaled(architecture.config, params)
    for name in params:
        if name.endswith("lora_a"):
            stem = name.removesuffix("lora_a")
            factors = ready[name], ready[f"{stem}lora_b"], ready.get(f"{stem}lora_magnitude")
            merged[f"{stem}kernel"] = _merged(ready[f"{stem}kernel"], *factors)
    return with_lora(architecture, None), merged


# A function of the module, so that maps of equal shape are compiled once.
@jax.jit
def _merged(
    kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None
) -> jax.Array:
    return merged_kernel(kernel, a, b, magnitude).astype(kernel.dtype)
