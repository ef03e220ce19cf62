"""The config.json of Qwen2-VL and Qwen2.5-VL to our config and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from afmrl_jax.config import QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.errors import RunError
from afmrl_jax.types import JsonObject


class Fields:
    """A JSON object whose missing fields are errors that name the file."""

    def __init__(self, values: JsonObject, where: str):
        self._values, self._where = values, where

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of several names that is there."""
        for name in names:
            if self._values.get(name) is not None:
                return self._values[name]
        if default is None:
            raise RunError(f"{self._where} has no {names[0]}; is it a Qwen2-VL or Qwen2.5-VL?")
        return default


def read_config(
    family: str, vision: Callable[[Fields], VisionConfig], raw: JsonObject, where: str
) -> QwenVLConfig:
    """Our config of a config.json, flat as published or nested as transformers 5 writes it.

    Args:
        family: its name.
        vision: reads the fields of `vision_config`.
        raw: the file.
        where: its name in messages.

    Raises:
        RunError: a missing field, or a feature that is not supported.
    """
    nested = raw.get("text_config") or {}
    text_values = {**raw, **nested}
    # The published flat files have these at the top; a nested default must not hide them.
    if "hidden_size" in raw:
        text_values = {**nested, **raw}
    text = _text(Fields(text_values, where), text_values, raw, where)
    tower = vision(Fields(raw.get("vision_config") or {}, f"{where}: vision_config"))
    token = raw.get("image_token_id", text_values.get("image_token_id", 151655))
    return QwenVLConfig(family, tower, text, int(token))


def _text(fields: Fields, values: JsonObject, raw: JsonObject, where: str) -> TextConfig:
    if values.get("use_sliding_window"):
        raise RunError(f"{where}: sliding-window attention is not supported")
    if fields.get("hidden_act", default="silu") != "silu":
        raise RunError(f"{where}: hidden_act {values['hidden_act']!r} is not supported, only silu")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise RunError(f"{where}: rotary positions of type {kind!r} are not supported")
    heads, size = fields.get("num_attention_heads"), fields.get("hidden_size")
    if values.get("head_dim") not in (None, size // heads):
        raise RunError(f"{where}: a head_dim other than hidden_size / heads is not supported")
    tied = raw.get("tie_word_embeddings", values.get("tie_word_embeddings", False))
    return TextConfig(
        vocab_size=fields.get("vocab_size"),
        hidden_dim=size,
        intermediate_dim=fields.get("intermediate_size"),
        num_layers=fields.get("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads", default=heads),
        rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta", default=1e6)),
        mrope_section=tuple(rope.get("mrope_section") or (16, 24, 24)),
        rms_norm_eps=fields.get("rms_norm_eps", default=1e-6),
        tie_embeddings=bool(tied),
    )


def _shared_vision(fields: Fields) -> JsonObject:
    return {
        "depth": fields.get("depth", default=32),
        "num_heads": fields.get("num_heads", default=16),
        "patch_size": fields.get("patch_size", "spatial_patch_size", default=14),
        "merge_size": fields.get("spatial_merge_size", default=2),
        "temporal_patch_size": fields.get("temporal_patch_size", default=2),
        "in_channels": fields.get("in_channels", "in_chans", default=3),
    }


def read_qwen2_vision(fields: Fields) -> VisionConfig:
    """The tower of a Qwen2-VL from its `vision_config`."""
    shared, size = _shared_vision(fields), fields.get("embed_dim", default=1280)
    return VisionConfig(
        embed_dim=size,
        intermediate=int(size * fields.get("mlp_ratio", default=4)),
        out_dim=fields.get("hidden_size"),
        # It has no windows; any size that its patches divide says so.
        window_size=2 * shared["patch_size"] * shared["merge_size"],
        **shared,
    )


def write_qwen2_vision(vision: VisionConfig) -> JsonObject:
    """What `vision_config` says of a Qwen2-VL alone."""
    ratio = vision.intermediate / vision.embed_dim
    return {
        "embed_dim": vision.embed_dim,
        "hidden_size": vision.out_dim,
        # transformers 5 refuses a fraction; published models have 4.
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
    }


def read_qwen2_5_vision(fields: Fields) -> VisionConfig:
    """The tower of a Qwen2.5-VL from its `vision_config`."""
    return VisionConfig(
        embed_dim=fields.get("hidden_size", default=1280),
        intermediate=fields.get("intermediate_size", default=3420),
        out_dim=fields.get("out_hidden_size"),
        window_size=fields.get("window_size", default=112),
        full_attention_blocks=tuple(fields.get("fullatt_block_indexes", default=(7, 15, 23, 31))),
        **_shared_vision(fields),
    )


def write_qwen2_5_vision(vision: VisionConfig) -> JsonObject:
    """What `vision_config` says of a Qwen2.5-VL alone."""
    return {
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.intermediate,
        "out_hidden_size": vision.out_dim,
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_attention_blocks),
        "hidden_act": "silu",
        "tokens_per_second": 2,
    }


def write_config(
    hub_class: str, vision_fields: Callable[[VisionConfig], JsonObject], config: QwenVLConfig
) -> JsonObject:
    """The flat config.json of a model, as published for Qwen2-VL; transformers 4 and 5 read it.

    Args:
        hub_class: name of the class in transformers.
        vision_fields: what the family's `vision_config` says beside the shared fields.
        config: the model; its adapters are no part of the file.
    """
    text, vision = config.text, config.vision
    shared = {
        "depth": vision.depth,
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "in_channels": vision.in_channels,
        "in_chans": vision.in_channels,
    }
    return {
        "architectures": [hub_class],
        "model_type": config.family,
        "image_token_id": config.image_token_id,
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_dim,
        "intermediate_size": text.intermediate_dim,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": text.tie_embeddings,
        "vision_config": {"model_type": config.family, **shared, **vision_fields(vision)},
    }
