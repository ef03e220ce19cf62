"""The config.json of Qwen3-VL to our config and back: nested, as it is published."""

from __future__ import annotations

import math
import reprlib

from afmrl_jax.config import QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.models.qwen_vl.hub_config import (
    MAX_HEADS,
    MAX_SIDE,
    image_token,
    rope_fields,
    text_sizes,
)
from afmrl_jax.models.qwen_vl.hub_fields import MAX_LAYERS, Fields
from afmrl_jax.types import JsonObject

FAMILY = "qwen3_vl"
GELU = "gelu_pytorch_tanh"
MAX_POSITIONS = 1 << 20
DEFAULT_THETA = 5e5
"""Of transformers; published files say 5e6."""


def read_qwen3_config(raw: JsonObject, where: str) -> QwenVLConfig:
    """Our config of a config.json.

    Args:
        raw: the file.
        where: its name in messages.

    Raises:
        RunError: a missing field, or a feature that is not supported.
    """
    top = Fields(raw, where)
    text = _text(Fields(top.inner("text_config"), f"{where}: text_config"), top)
    vision = _vision(Fields(top.inner("vision_config"), f"{where}: vision_config"))
    return QwenVLConfig(FAMILY, vision, text, image_token(top, text.vocab_size))


def _text(fields: Fields, top: Fields) -> TextConfig:
    for name, wanted in (("hidden_act", "silu"), ("attention_bias", False)):
        found = fields.get(name, default=wanted)
        if found != wanted:
            raise fields.unsupported(
                f"{name} {reprlib.repr(found)} is not supported, only {wanted}"
            )
    rope = rope_fields(fields)
    if rope.get("mrope_interleaved", True) is not True:
        raise fields.unsupported("rotary positions that do not take turns are not supported")
    positions = fields.over(rope)
    return TextConfig(
        **text_sizes(fields),
        rope_theta=positions.number("rope_theta", least=1.0, most=1e12, default=DEFAULT_THETA),
        mrope_section=positions.take(tuple[int, int, int], "mrope_section", default=(24, 20, 20)),
        tie_embeddings=top.take(bool, "tie_word_embeddings", default=False),
        head_size=fields.size("head_dim", default=128),
        qkv_bias=False,
        qk_norm=True,
    )


def _vision(fields: Fields) -> VisionConfig:
    act = fields.get("hidden_act", default=GELU)
    if act != GELU:
        raise fields.unsupported(f"hidden_act {reprlib.repr(act)} is not supported, only {GELU}")
    channels = fields.size("in_channels", default=3)
    fields.require(channels == 3, "in_channels", channels, "3, the colors of a picture")
    count = fields.size("num_position_embeddings", most=MAX_POSITIONS, default=2304)
    side = math.isqrt(count)
    fields.require(side**2 == count, "num_position_embeddings", count, "the square of a side")
    depth = fields.size("depth", most=MAX_LAYERS, default=27)
    deep = fields.take(tuple[int, ...], "deepstack_visual_indexes", default=(8, 16, 24))
    fields.require(
        list(deep) == sorted(set(deep)) and all(0 <= x < depth for x in deep),
        "deepstack_visual_indexes",
        deep,
        f"blocks of the tower in order, from 0 to {depth - 1}",
    )
    patch = fields.size("patch_size", most=MAX_SIDE, default=16)
    merge = fields.size("spatial_merge_size", most=MAX_SIDE, default=2)
    return VisionConfig(
        depth=depth,
        embed_dim=fields.size("hidden_size", default=1152),
        num_heads=fields.size("num_heads", most=MAX_HEADS, default=16),
        intermediate=fields.size("intermediate_size", default=4304),
        out_dim=fields.size("out_hidden_size"),
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=fields.size("temporal_patch_size", most=MAX_SIDE, default=2),
        # It has no windows; any size that its patches divide says so.
        window_size=2 * patch * merge,
        in_channels=channels,
        position_side=side,
        deep_blocks=deep,
    )


def write_qwen3_config(config: QwenVLConfig) -> JsonObject:
    """The config.json of a model; its adapters are no part of the file."""
    text, vision = config.text, config.vision
    sections = {"mrope_section": list(text.mrope_section), "mrope_interleaved": True}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": FAMILY,
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": text.tie_embeddings,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_dim,
            "intermediate_size": text.intermediate_dim,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": 262144,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"rope_type": "default", **sections},
            "tie_word_embeddings": text.tie_embeddings,
        },
        "vision_config": {
            "model_type": FAMILY,
            "depth": vision.depth,
            "hidden_size": vision.embed_dim,
            "hidden_act": GELU,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.num_heads,
            "in_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "out_hidden_size": vision.out_dim,
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.deep_blocks),
        },
    }
