"""Hugging Face's config.json to our config and back, whatever the family."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

from afmrl_jax.config import QwenVLConfig
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.models.families import FAMILIES, family
from afmrl_jax.models.qwen_vl.hub_fields import REMEDY
from afmrl_jax.types import JsonObject


def from_hub_config(raw: object, where: str) -> QwenVLConfig:
    """Our config of a config.json.

    Raises:
        RunError: another kind of model, a feature that is not supported, or a field that is
            missing, of another type or out of range; it names file and field.
    """
    if not isinstance(raw, dict):
        raise RunError(f"{where} is no JSON object; {REMEDY}")
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise RunError(
            f"{where} describes a model of type {reprlib.repr(name)}; supported are "
            f"{', '.join(FAMILIES)}"
        )
    if raw.get("quantization_config"):
        raise RunError(f"{where}: quantised weights are not supported; use the unquantised model")
    try:
        return FAMILIES[name].read_config(raw, where)
    except ConfigError as error:
        raise RunError(f"{where}: {error}; {REMEDY}") from error


def to_hub_config(config: QwenVLConfig, *, dtype: str, ids: Mapping[str, int]) -> JsonObject:
    """The config.json of a model.

    Args:
        config: the model; its adapters are no part of the file.
        dtype: of the weights, `float32` or `bfloat16`.
        ids: special tokens by their names in the file, such as `vision_start_token_id`.
    """
    return family(config.family).write_config(config) | {**ids, "torch_dtype": dtype}
