"""The published sizes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and the demo's, by name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from afmrl_jax.config import QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.errors import ConfigError


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> TextConfig:
    return TextConfig(
        vocab_size=vocabulary,
        hidden_dim=hidden,
        intermediate_dim=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
        rms_norm_eps=1e-6,
        # The small models share token table and head; their vocabulary is not padded either.
        tie_embeddings=vocabulary == 151936,
    )


def _qwen2_vl(text: TextConfig) -> QwenVLConfig:
    vision = VisionConfig(
        depth=32,
        embed_dim=1280,
        num_heads=16,
        intermediate=4 * 1280,
        out_dim=text.hidden_dim,
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        # It has no windows; this is what reading a published config.json gives.
        window_size=56,
    )
    return QwenVLConfig("qwen2_vl", vision, text)


def _qwen2_5_vl(text: TextConfig) -> QwenVLConfig:
    vision = VisionConfig(
        depth=32,
        embed_dim=1280,
        num_heads=16,
        intermediate=3420,
        out_dim=text.hidden_dim,
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        window_size=112,
        full_attention_blocks=(7, 15, 23, 31),
    )
    return QwenVLConfig("qwen2_5_vl", vision, text)


def _qwen3_vl(
    text: TextConfig, depth: int = 24, width: int = 1024, intermediate: int = 4096
) -> QwenVLConfig:
    vision = VisionConfig(
        depth=depth,
        embed_dim=width,
        num_heads=16,
        intermediate=intermediate,
        out_dim=text.hidden_dim,
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        window_size=64,
        position_side=48,
        deep_blocks=(5, 11, 17) if depth == 24 else (8, 16, 24),
    )
    return QwenVLConfig("qwen3_vl", vision, text)


def _text3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> TextConfig:
    return TextConfig(
        vocab_size=151936,
        hidden_dim=hidden,
        intermediate_dim=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        rope_theta=5e6,
        mrope_section=(24, 20, 20),
        rms_norm_eps=1e-6,
        tie_embeddings=tied,
        head_size=128,
        qkv_bias=False,
        qk_norm=True,
    )


def _demo(
    family: str,
    vocab_size: int,
    image_token_id: int,
    *,
    full_attention_blocks: tuple[int, ...] = (),
    kv_heads: int = 4,
) -> QwenVLConfig:
    vision = VisionConfig(
        depth=2,
        embed_dim=64,
        num_heads=4,
        intermediate=192,
        out_dim=96,
        full_attention_blocks=full_attention_blocks,
    )
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_dim=96,
        intermediate_dim=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=kv_heads,
        mrope_section=(4, 4, 4),
    )
    return QwenVLConfig(family, vision, text, image_token_id)


DEMO_QWEN2_VL = partial(_demo, "qwen2_vl")
DEMO_QWEN2_5_VL = partial(_demo, "qwen2_5_vl", full_attention_blocks=(1,), kv_heads=2)
"""(vocab_size, image_token_id) -> a model of about 0.7 M parameters, which two CPU cores train from
scratch in minutes.

An embedder needs the values of four heads: two are too narrow to carry picture, title and list to
the last token. A generator can do with two."""


def _demo_qwen3(vocab_size: int, image_token_id: int) -> QwenVLConfig:
    """As the other demo models, with every part of a Qwen3-VL."""
    other = _demo("qwen3_vl", vocab_size, image_token_id)
    window = 2 * other.vision.patch_size * other.vision.merge_size
    return replace(
        other,
        vision=replace(other.vision, position_side=12, deep_blocks=(0,), window_size=window),
        text=replace(other.text, head_size=24, qkv_bias=False, qk_norm=True),
    )


DEMO_QWEN3_VL = _demo_qwen3

PRESETS: dict[str, QwenVLConfig] = {
    "qwen2vl_2b": _qwen2_vl(_text(1536, 8960, 28, 12, 2, 151936)),
    "qwen2vl_7b": _qwen2_vl(_text(3584, 18944, 28, 28, 4, 152064)),
    "qwen2_5vl_3b": _qwen2_5_vl(_text(2048, 11008, 36, 16, 2, 151936)),
    "qwen2_5vl_7b": _qwen2_5_vl(_text(3584, 18944, 28, 28, 4, 152064)),
    "qwen3vl_2b": _qwen3_vl(_text3(2048, 6144, 28, 16, tied=True)),
    "qwen3vl_4b": _qwen3_vl(_text3(2560, 9728, 36, 32, tied=True)),
    "qwen3vl_8b": _qwen3_vl(_text3(4096, 12288, 36, 32, tied=False), 27, 1152, 4304),
    "demo_embedder": DEMO_QWEN2_VL(2048, 5),
    "demo_generator": DEMO_QWEN2_5_VL(2048, 5),
}
"""`qwen*` as published, with `<|image_pad|>` at 151655; `demo_*` about as large as the demo's."""


def preset(name: str) -> QwenVLConfig:
    """A model size by name.

    Raises:
        ConfigError: there is none of that name; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]
