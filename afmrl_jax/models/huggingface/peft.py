"""Adapters as the folders of the `peft` library, in and out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import LoraConfig
from afmrl_jax.config.model import LORA_TARGETS
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.names import canonical_name
from afmrl_jax.models.huggingface.safetensors import (
    StoredTensor,
    TensorToWrite,
    stored_tensors,
    write_tensors,
)
from afmrl_jax.models.qwen_vl.hub_fields import MAX_WIDTH
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.json_files import checked, read_json
from afmrl_jax.types import AnyArray, JsonObject

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"^model\.layers\.([0-9]{1,6})\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$")
_REMEDY = "copy the adapter again"
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
)
"""Settings of variants that compute something else, or keep more than the two factors."""


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def read_peft_config(folder: Path) -> tuple[LoraConfig, str | None]:
    """What an adapter is, and the folder of the model that it belongs to, if it names one.

    Raises:
        RunError: no LoRA adapter of the decoder, or a variant that is not supported.
    """
    path = folder / CONFIG
    raw = read_json(path, remedy=_REMEDY)
    found = checked(_AdapterConfig, raw, path, remedy=_REMEDY)
    used = [name for name in _UNSUPPORTED if raw.get(name)]
    if found.peft_type != "LORA" or used or found.bias != "none":
        what = ", ".join(used) or f"peft_type {found.peft_type}, bias {found.bias}"
        raise RunError(f"{path}: only plain LoRA adapters are read, not {what}; merge it with peft")
    if found.r is None or found.lora_alpha is None:
        raise RunError(f"{path} has no r or no lora_alpha; {_REMEDY}")
    if not (1 <= found.r <= MAX_WIDTH and 0 < found.lora_alpha <= 1e9):
        raise RunError(f"{path}: r and lora_alpha must be above zero and not huge; {_REMEDY}")
    adapted = {_parse(name, folder)[1].rpartition("/")[2] for name in _stored(folder)}
    targets = tuple(name for name in LORA_TARGETS if name in adapted)
    if not targets:
        raise RunError(f"{folder / WEIGHTS} adapts nothing; {_REMEDY}")
    return LoraConfig(found.r, found.lora_alpha, targets), found.base_model_name_or_path


@dataclass(frozen=True)
class _AdapterConfig:
    """What is read of an adapter_config.json."""

    peft_type: str | None = None
    bias: str = "none"
    r: int | None = None
    lora_alpha: float | None = None
    base_model_name_or_path: str | None = None


def _stored(folder: Path) -> dict[str, StoredTensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunError(f"{folder} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored_tensors(path).items():
        canonical = canonical_name(name.removeprefix("base_model.model."))
        if canonical in found:
            raise RunError(f"{path} holds {canonical} twice, once as {name}; {_REMEDY}")
        found[canonical] = tensor
    return found


def _parse(name: str, folder: Path) -> tuple[int, str, str]:
    """(layer, `self_attn/q_proj`, `lora_a`) of a tensor's name."""
    match = _NAME.match(name)
    if match is None or match[3] not in LORA_TARGETS:
        raise RunError(
            f"{folder / WEIGHTS}: tensor {name} adapts no linear map of the decoder; merge the "
            "adapter into its model with peft (`merge_and_unload`) and load that"
        )
    return int(match[1]), f"{match[2]}/{match[3]}", f"lora_{match[4].lower()}"


def load_adapter(folder: Path, architecture: Architecture) -> Params:
    """The adapter's parameters, float32, for an architecture that has such adapters.

    Raises:
        RunError: lists every missing, extra and misshapen tensor.
    """
    pieces: dict[str, np.ndarray] = {}
    filled: set[tuple[str, int]] = set()
    problems = []
    wanted = {n: s for n, s in architecture.shapes.items() if n.endswith(("lora_a", "lora_b"))}
    for name, stored in _stored(folder).items():
        layer, module, half = _parse(name, folder)
        ours = f"model/layers/{module}/{half}"
        shape = wanted[ours].shape if ours in wanted else (0, 0, 0)
        if layer >= shape[0]:
            problems.append(f"extra {name}")
        elif stored.shape != shape[:0:-1]:
            problems.append(f"{name} has shape {stored.shape} instead of {shape[:0:-1]}")
        else:
            place = pieces.setdefault(ours, np.zeros(shape, np.float32))
            place[layer] = np.asarray(stored.open()).T.astype(np.float32)
            filled.add((ours, layer))
    problems += [
        f"missing layer {layer} of {name}"
        for name, struct in wanted.items()
        for layer in range(struct.shape[0])
        if (name, layer) not in filled
    ]
    if problems:
        raise RunError(f"{folder / WEIGHTS} does not fit the model: " + "; ".join(problems))
    return {name: jnp.asarray(value) for name, value in pieces.items()}


def save_adapter(folder: Path, architecture: Architecture, params: Params, base: str) -> None:
    """Write an adapter into an existing folder, for `peft.PeftModel.from_pretrained`.

    Args:
        folder: the caller makes it whole or absent.
        architecture: with adapters.
        params: holds them.
        base: the folder or hub name of the model that they belong to.
    """
    lora = architecture.config.lora
    assert lora is not None
    tensors = []
    for name, value in params.items():
        stem, _, half = name.rpartition("/")
        if half not in ("lora_a", "lora_b"):
            continue
        module = stem.removeprefix("model/layers/").replace("/", ".")
        for layer in range(value.shape[0]):
            # The name of a module in memory, which peft goes by.
            full = f"base_model.model.model.language_model.layers.{layer}.{module}"
            make: Callable[[], np.ndarray] = partial(_fetch, value, layer)
            tensors.append(
                TensorToWrite(
                    f"{full}.lora_{half[-1].upper()}.weight",
                    value.shape[:0:-1],
                    np.dtype(np.float32),
                    make,
                )
            )
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, _config(lora, base))


def _fetch(value: AnyArray, layer: int) -> np.ndarray:
    return to_host(value[layer]).T.astype(np.float32)


def _config(lora: LoraConfig, base: str) -> JsonObject:
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        # A pattern, because bare names would also match maps of Qwen2.5-VL's vision tower.
        "target_modules": rf".*\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(lora.targets)})",
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
