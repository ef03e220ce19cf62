"""A model on disk: a Hugging Face folder, or a PEFT adapter beside the folder of its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from afmrl_jax.config import Execution
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.huggingface.config import from_hub_config, to_hub_config
from afmrl_jax.models.huggingface.manifest import check_weights, write_manifest
from afmrl_jax.models.huggingface.peft import is_peft_folder, read_adapter, save_adapter
from afmrl_jax.models.huggingface.peft_config import read_peft_config
from afmrl_jax.models.huggingface.read import Shardings, check_fit, hub_files, load_params
from afmrl_jax.models.huggingface.write import SHARD_BYTES, save_params
from afmrl_jax.models.lora import with_lora
from afmrl_jax.models.qwen_vl.hub_fields import REMEDY
from afmrl_jax.runtime.distributed import to_devices
from afmrl_jax.runtime.files import atomic_path, write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.types import JsonObject

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""Files that other programs want beside the weights."""


@runtime_checkable
class SpecialTokens(Protocol):
    """What config.json says of a tokenizer, and how it is stored."""

    pad_id: int
    eos_id: int
    im_start_id: int
    vision_start_id: int
    vision_end_id: int

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        ...


def save_model(
    folder: Path,
    architecture: Architecture,
    params: Params,
    *,
    like: Path | None = None,
    tokenizer: SpecialTokens | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model as one folder, whole or not at all.

    An architecture with adapters is written as a PEFT folder that names `like` as its base; any
    other as a Hugging Face folder, which `from_pretrained` reads.

    Args:
        folder: replaced where it exists.
        architecture: of `params`.
        params: every tensor keeps its type.
        like: the folder that the weights came from; its config, tokenizer and processor files are
            taken over.
        tokenizer: written where `like` is None.
        shard_bytes: largest size of a weight file.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if architecture.config.lora is not None:
            if like is None:
                raise RunError(f"{folder}: an adapter needs the folder of its base model")
            save_adapter(temporary, architecture, params, str(like))
        else:
            save_params(temporary, architecture, params, shard_bytes)
            write_json(temporary / "config.json", _config(architecture, params, like, tokenizer))
        if like is not None:
            for name in COMPANIONS:
                if (like / name).is_file():
                    shutil.copyfile(like / name, temporary / name)
        elif tokenizer is not None:
            tokenizer.save(temporary)
        write_manifest(temporary)
    return folder


def _config(
    architecture: Architecture,
    params: Params,
    like: Path | None,
    tokenizer: SpecialTokens | None,
) -> JsonObject:
    dtype = str(np.dtype(params["model/embed_tokens"].dtype))
    if like is not None:
        raw: JsonObject = read_json(like / "config.json", remedy=REMEDY)
        known = [key for key in ("dtype", "torch_dtype") if key in raw]
        return raw | dict.fromkeys(known or ["torch_dtype"], dtype)
    ids = {}
    if tokenizer is not None:
        ids = {
            "bos_token_id": tokenizer.im_start_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "vision_start_token_id": tokenizer.vision_start_id,
            "vision_end_token_id": tokenizer.vision_end_id,
        }
    return to_hub_config(architecture.config, dtype=dtype, ids=ids)


def base_folder(folder: Path) -> Path:
    """The folder of whole weights behind a folder: its own, or that of an adapter's base."""
    if not is_peft_folder(folder):
        return folder
    named = read_peft_config(folder).base_model_name_or_path
    if not named or not _is_folder(Path(named)):
        raise RunError(
            f"{folder} is an adapter of {named!r}, which is no folder here; give its base model"
        )
    return _whole(Path(named), folder)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # Too long a name.
        return False


def _whole(base: Path, folder: Path) -> Path:
    """The base of an adapter, unless that is an adapter, too: of another one, or of itself."""
    if is_peft_folder(base):
        raise RunError(
            f"{folder} is an adapter of {base}, which is an adapter itself; merge that one into "
            "its model with peft (`merge_and_unload`) and name the result"
        )
    return base


def family_in(folder: Path) -> str | None:
    """The family of the model in a folder, or of an adapter's base; None if it cannot be told."""
    try:
        raw = read_json(base_folder(folder) / "config.json", remedy=REMEDY)
    except (ConfigError, RunError, OSError):
        return None
    name = raw.get("model_type") if isinstance(raw, dict) else None
    return name if isinstance(name, str) else None


def read_architecture(folder: Path, execution: Execution | None = None) -> Architecture:
    """The architecture of a Hugging Face folder, from its config.json alone.

    That of a PEFT folder also has its adapters, whose tensors must fit its base's.
    """
    if is_peft_folder(folder):
        plain = read_architecture(base_folder(folder), execution)
        found = read_adapter(folder, plain)
        return with_lora(plain, found.lora, found.maps)
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(
            f"{folder} holds no model (config.json is missing); give the folder of a Qwen2-VL or "
            "Qwen2.5-VL, or run the stage that writes it"
        )
    config = from_hub_config(read_json(path, remedy=REMEDY), str(path))
    try:
        return Architecture.of(config, execution)
    except ConfigError as error:
        raise RunError(f"{path}: {error}; {REMEDY}") from error


def load_model(
    folder: Path,
    *,
    shardings: Shardings | None = None,
    execution: Execution | None = None,
    dtype: str | None = None,
    base: Path | None = None,
) -> tuple[Architecture, Params]:
    """Read a Hugging Face folder, or a PEFT folder together with its base.

    Args:
        folder: with config.json or adapter_config.json.
        shardings: where parameters go, see `read.load_params`; None for the first device.
        execution: how the model will be computed.
        dtype: of the parameters; None keeps the files' own. Adapters are float32.
        base: of an adapter; None takes the folder that it names.

    Raises:
        RunError: the folder is no such model, its tensors do not fit, or its weights are not
            those that its manifest records.
    """
    if is_peft_folder(folder):
        # Before the weights of the base: most adapters that are not read say so here.
        read_peft_config(folder)
        whole = base_folder(folder) if base is None else _whole(base, folder)
        plain, params = load_model(whole, shardings=shardings, execution=execution, dtype=dtype)
        found = read_adapter(folder, plain)
        architecture = with_lora(plain, found.lora, found.maps)
        adapter = found.load(architecture)
        check_weights(folder)
        if shardings is not None:
            shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in adapter.items()}
            adapter = to_devices(adapter, dict(shardings(shapes)))
        return architecture, {**params, **adapter}
    architecture = read_architecture(folder, execution)
    stored = hub_files(folder)
    check_fit(architecture, stored, str(folder))
    check_weights(folder)
    return architecture, load_params(architecture, stored, shardings, dtype)
