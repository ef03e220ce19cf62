"""Hugging Face's config.json to our config and back, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping

from afmrl_jax.config import QwenVLConfig
from afmrl_jax.errors import RunError
from afmrl_jax.models.families import FAMILIES, family
from afmrl_jax.types import JsonObject


def from_hub_config(raw: object, where: str) -> QwenVLConfig:
    """Our config of a config.json.

    Raises:
        RunError: another kind of model, a missing field, or a feature that is not supported.
    """
    if not isinstance(raw, dict):
        raise RunError(f"{where} is no JSON object; download it again")
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise RunError(
            f"{where} describes a model of type {name!r}; supported are {', '.join(FAMILIES)}"
        )
    if raw.get("quantization_config"):
        raise RunError(f"{where}: quantised weights are not supported; use the unquantised model")
    return FAMILIES[name].read_config(raw, where)


def to_hub_config(config: QwenVLConfig, *, dtype: str, ids: Mapping[str, int]) -> JsonObject:
    """The config.json of a model.

    Args:
        config: the model; its adapters are no part of the file.
        dtype: of the weights, `float32` or `bfloat16`.
        ids: special tokens by their names in the file, such as `vision_start_token_id`.
    """
    return family(config.family).write_config(config) | {**ids, "torch_dtype": dtype}
