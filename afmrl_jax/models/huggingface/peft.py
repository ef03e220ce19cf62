"""Adapters as the folders of the `peft` library, in and out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import LoraConfig, LoraMap
from afmrl_jax.config.lora import LORA_TARGETS
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.names import canonical_name, hub_tensors
from afmrl_jax.models.huggingface.peft_config import (
    CONFIG,
    REMEDY,
    PeftConfig,
    read_peft_config,
    written_config,
)
from afmrl_jax.models.huggingface.safetensors import (
    StoredTensor,
    TensorToWrite,
    stored_tensors,
    write_tensors,
)
from afmrl_jax.models.qwen_vl.adapters import Adapters, tower_target
from afmrl_jax.parallel.param_paths import TOWER, is_adapter
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.runtime.files import write_json
from afmrl_jax.types import AnyArray

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(r"^(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)$")
_THEIRS = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}
_HALVES = {theirs: ours for ours, theirs in _THEIRS.items()} | {
    "lora_magnitude_vector.weight": "lora_magnitude"
}


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class _Module:
    """A linear map of the model, in one layer."""

    path: str
    """`model/layers/self_attn/q_proj`"""
    layer: int | None
    """None outside of stacks."""
    shape: tuple[int, int]
    """(outputs, inputs)"""

    def shapes(self, rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
        """Of an adapter's tensors, as they are stored."""
        outputs, inputs = self.shape
        found: dict[str, tuple[int, ...]] = {"lora_a": (rank, inputs), "lora_b": (outputs, rank)}
        return {**found, "lora_magnitude": (outputs,)} if dora else found


def _modules(architecture: Architecture) -> dict[str, _Module]:
    """The linear maps that may have adapters, by their names in published files."""
    return {
        x.name.removesuffix(".weight"): _Module(
            x.ours.removesuffix("/kernel"), x.layer, (x.shape[0], x.shape[1])
        )
        for x in hub_tensors(architecture)
        if x.kind == "matrix" and x.ours.endswith("/kernel")
    }


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of a folder whose tensors fit its model and have not been read yet."""

    lora: LoraConfig
    maps: tuple[LoraMap, ...]
    stored: dict[tuple[str, int | None, str], StoredTensor]
    """By path of the map, layer and half."""

    def load(self, architecture: Architecture) -> Params:
        """Its parameters, float32.

        Args:
            architecture: with these adapters.
        """
        shapes = {n: x.shape for n, x in architecture.shapes.items() if is_adapter(n)}
        arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for (path, layer, half), stored in self.stored.items():
            whole = arrays[f"{path}/{half}"]
            value = np.asarray(stored.open()).T.astype(np.float32)
            # A layer of a smaller rank than others leaves the rest zero.
            place = tuple(slice(size) for size in value.shape)
            (whole if layer is None else whole[layer])[place] = value
        return {name: jnp.asarray(value) for name, value in arrays.items()}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of an adapter's file."""

    name: str
    """Canonical."""
    module: str
    """Canonical name of what it adapts."""
    own: str
    """The module's name in the file, which was its name in memory and what patterns fit."""
    half: str
    """`lora_a`, `lora_b` or `lora_magnitude`."""
    stored: StoredTensor


def _tensors(folder: Path) -> dict[tuple[str, str], _Tensor]:
    """An adapter's tensors by module and half; what is no part of an adapter has an empty half."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunError(f"{folder} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    found: dict[tuple[str, str], _Tensor] = {}
    for name, stored in stored_tensors(path).items():
        whole = name.removeprefix(_PREFIX)
        match = _NAME.match(whole)
        own, half = (match[1], _HALVES[match[2]]) if match else (whole, "")
        tensor = _Tensor(canonical_name(whole), canonical_name(own), own, half, stored)
        if (tensor.module, half) in found:
            raise RunError(f"{path} holds {tensor.name} twice, once as {name}; {REMEDY}")
        found[tensor.module, half] = tensor
    if not found:
        raise RunError(f"{path} adapts nothing; {REMEDY}")
    return found


def read_adapter(folder: Path, architecture: Architecture) -> PeftAdapter:
    """What a folder's adapter is, and where its tensors are.

    Args:
        folder: of the adapter.
        architecture: of the model that it belongs to, without adapters.

    Raises:
        RunError: no adapter that can be read, or tensors that do not fit the model, all of them
            listed.
    """
    config, tensors = read_peft_config(folder), _tensors(folder)
    modules = _modules(architecture)
    # Both factors of a module bear one name, or one of them is missing under the first's.
    names = {x.module: x.own for x in tensors.values() if x.module in modules}
    found = config.sizes([*names.values()], folder / CONFIG)
    sizes = dict(zip(names, found, strict=True))
    problems = _problems(config, modules, sizes, tensors)
    if problems:
        raise RunError(
            f"{folder / WEIGHTS} does not fit the model: {'; '.join(problems)}. Where peft takes "
            "this adapter, merge it into its model there (`merge_and_unload`) and load the result"
        )
    stored = {
        (modules[module].path, modules[module].layer, half): x.stored
        for (module, half), x in tensors.items()
    }
    by_path: dict[str, list[tuple[int, float]]] = {}
    for name, module in modules.items():
        if name in sizes:
            by_path.setdefault(module.path, []).append(sizes[name])
    maps = tuple(
        LoraMap(path, *(tuple(x) for x in zip(*own, strict=True)))
        for path, own in by_path.items()
        if set(own) != {(config.rank, config.alpha)}
    )
    decoder = {path.rpartition("/")[2] for path in by_path if not path.startswith(TOWER)}
    lora = LoraConfig(
        config.rank,
        config.alpha,
        tuple(name for name in LORA_TARGETS if name in decoder),
        tuple(tower_target(path) for path in by_path if path.startswith(TOWER)),
        rank_stabilized=bool(config.use_rslora),
        dora=bool(config.use_dora),
    )
    return PeftAdapter(lora, maps, stored)


def _problems(
    config: PeftConfig,
    modules: dict[str, _Module],
    sizes: dict[str, tuple[int, float]],
    tensors: dict[tuple[str, str], _Tensor],
) -> list[str]:
    """What is missing, extra and misshapen.

    Args:
        config: of the adapter.
        modules: of the model.
        sizes: rank and alpha of those that have an adapter.
        tensors: of the adapter.
    """
    dora = bool(config.use_dora)
    problems = []
    for (name, half), tensor in tensors.items():
        shapes = modules[name].shapes(sizes[name][0], dora) if name in modules else {}
        if half not in shapes:
            problems.append(f"extra {tensor.name}")
        elif tensor.stored.shape != shapes[half]:
            problems.append(
                f"{tensor.name} has shape {tensor.stored.shape} instead of {shapes[half]}"
            )
    adapted = {modules[name].path for name in sizes}
    for name, module in modules.items():
        if module.path in adapted:
            where = "" if module.layer is None else f"layer {module.layer} of "
            halves = module.shapes(1, dora)
            lost = [x for x in halves if (name, x) not in tensors]
            problems += [f"missing {where}{module.path}/{x}" for x in lost]
    return problems


def save_adapter(folder: Path, architecture: Architecture, params: Params, base: str) -> None:
    """Write an adapter into an existing folder, for `peft.PeftModel.from_pretrained`.

    Args:
        folder: the caller makes it whole or absent.
        architecture: with adapters.
        params: holds them.
        base: the folder or hub name of the model that they belong to.
    """
    config = architecture.config
    lora, adapters = config.lora, Adapters.of(config)
    assert lora is not None
    tensors, sizes = [], {}
    alphas = {x.name: x.alphas for x in config.lora_maps}
    for name, module in _modules(architecture).items():
        adapter = adapters(module.path)
        if adapter is None:
            continue
        number = module.layer or 0
        ranks, own = adapter.ranks, alphas.get(module.path, (lora.alpha,))
        rank = ranks[number if len(ranks) > 1 else 0]
        memory = _in_memory(name)
        sizes[memory] = (rank, own[number if len(own) > 1 else 0])
        for half, shape in module.shapes(rank, lora.dora).items():
            value = params[f"{module.path}/{half}"]
            make: Callable[[], np.ndarray] = partial(_fetch, value, module.layer, shape)
            stored = f"{_PREFIX}{memory}.{_THEIRS[half]}"
            tensors.append(TensorToWrite(stored, shape, np.dtype(np.float32), make))
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, written_config(lora, base, sizes))


def _in_memory(name: str) -> str:
    """The name of a module in memory, which peft goes by, from its published name."""
    return re.sub(r"^(?=visual\.)", "model.", re.sub(r"^model\.", "model.language_model.", name))


def _fetch(value: AnyArray, layer: int | None, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor as it is stored, without what other layers' larger ranks have added to it."""
    whole = to_host(value if layer is None else value[layer]).T.astype(np.float32)
    return whole[tuple(slice(size) for size in shape)]
