"""The config.json of Qwen2-VL and Qwen2.5-VL to our config and back."""

from __future__ import annotations

import reprlib
from collections.abc import Callable

from afmrl_jax.config import QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.models.qwen_vl.hub_fields import MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields
from afmrl_jax.types import JsonObject

IMAGE_TOKEN = 151655
"""Id of `<|image_pad|>` in files that do not say."""
MAX_HEADS = 4096
MAX_SIDE = 256


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
    nested = Fields(raw, where).inner("text_config")
    text_values = {**raw, **nested}
    # The published flat files have these at the top; a nested default must not hide them.
    if "hidden_size" in raw:
        text_values = {**nested, **raw}
    own = {name: value for name, value in raw.items() if value is not None}
    top = Fields({**text_values, **own}, where)
    text = _text(Fields(text_values, where), top)
    tower = vision(Fields(top.inner("vision_config"), f"{where}: vision_config"))
    return QwenVLConfig(family, tower, text, image_token(top, text.vocab_size))


def image_token(top: Fields, vocab_size: int) -> int:
    """Id of `<|image_pad|>`, from the fields of the whole model."""
    token = top.take(int, "image_token_id", default=IMAGE_TOKEN)
    known = f"an id of the vocabulary, below {vocab_size}"
    top.require(0 <= token < vocab_size, "image_token_id", token, known)
    return token


def rope_fields(fields: Fields) -> JsonObject:
    """What a decoder's fields say of its rotary positions, whatever version wrote them.

    Raises:
        RunError: they are of a kind that is not supported.
    """
    rope = fields.inner("rope_parameters") or fields.inner("rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise fields.unsupported(f"rotary positions of type {reprlib.repr(kind)} are not supported")
    return rope


def text_sizes(fields: Fields) -> JsonObject:
    """Sizes that decoders of all families have, by our names."""
    heads = fields.size("num_attention_heads", most=MAX_HEADS)
    return {
        "vocab_size": fields.size("vocab_size", most=MAX_VOCABULARY),
        "hidden_dim": fields.size("hidden_size"),
        "intermediate_dim": fields.size("intermediate_size"),
        "num_layers": fields.size("num_hidden_layers", most=MAX_LAYERS),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", most=MAX_HEADS, default=heads),
        "rms_norm_eps": fields.number("rms_norm_eps", least=1e-12, most=0.1, default=1e-6),
    }


def _text(fields: Fields, top: Fields) -> TextConfig:
    """The decoder.

    Args:
        fields: of the decoder, those of the whole model among them where the file is flat.
        top: the same, with those of the whole model first.
    """
    if fields.get("use_sliding_window", default=False):
        raise fields.unsupported("sliding-window attention is not supported")
    if (act := fields.get("hidden_act", default="silu")) != "silu":
        raise fields.unsupported(f"hidden_act {reprlib.repr(act)} is not supported, only silu")
    positions, sizes = fields.over(rope_fields(fields)), text_sizes(fields)
    head = sizes["hidden_dim"] // sizes["num_heads"]
    if fields.get("head_dim", default=head) != head:
        raise fields.unsupported("a head_dim other than hidden_size / heads is not supported")
    return TextConfig(
        **sizes,
        rope_theta=positions.number("rope_theta", least=1.0, most=1e12, default=1e6),
        mrope_section=positions.take(tuple[int, int, int], "mrope_section", default=(16, 24, 24)),
        tie_embeddings=top.take(bool, "tie_word_embeddings", default=False),
    )


def _shared_vision(fields: Fields) -> JsonObject:
    channels = fields.size("in_channels", "in_chans", default=3)
    fields.require(channels == 3, "in_channels", channels, "3, the colors of a picture")
    return {
        "depth": fields.size("depth", most=MAX_LAYERS, default=32),
        "num_heads": fields.size("num_heads", most=MAX_HEADS, default=16),
        "patch_size": fields.size("patch_size", "spatial_patch_size", most=MAX_SIDE, default=14),
        "merge_size": fields.size("spatial_merge_size", most=MAX_SIDE, default=2),
        "temporal_patch_size": fields.size("temporal_patch_size", most=MAX_SIDE, default=2),
        "in_channels": channels,
    }


def read_qwen2_vision(fields: Fields) -> VisionConfig:
    """The tower of a Qwen2-VL from its `vision_config`."""
    shared, size = _shared_vision(fields), fields.size("embed_dim", default=1280)
    ratio = fields.number("mlp_ratio", least=1 / size, most=MAX_WIDTH / size, default=4.0)
    return VisionConfig(
        embed_dim=size,
        intermediate=int(size * ratio),
        out_dim=fields.size("hidden_size"),
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
    shared = _shared_vision(fields)
    blocks = fields.take(tuple[int, ...], "fullatt_block_indexes", default=(7, 15, 23, 31))
    fields.require(
        all(0 <= block < shared["depth"] for block in blocks),
        "fullatt_block_indexes",
        blocks,
        f"blocks of the tower, from 0 to {shared['depth'] - 1}",
    )
    return VisionConfig(
        embed_dim=fields.size("hidden_size", default=1280),
        intermediate=fields.size("intermediate_size", default=3420),
        out_dim=fields.size("out_hidden_size"),
        window_size=fields.size("window_size", default=112),
        full_attention_blocks=blocks,
        **shared,
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
