"""Test doubles: a drawn catalogue and models small enough for a unit test."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from afmrl_jax.config import ImageConfig, LoraConfig, QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.runtime.files import file_hash, write_json

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": "#d11", "blue": "#14c", "green": "#182", "black": "#222", "amber": "#e90"}
LETTERS = ("a", "k")
_ATTENTION = ("attn.qkv", "attn.proj")
TOWER_TARGETS = {
    "qwen2_vl": (*_ATTENTION, "mlp.fc1", "mlp.fc2", "merger.mlp.0", "merger.mlp.2"),
    "qwen2_5_vl": (
        *(*_ATTENTION, "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"),
        *("merger.mlp.0", "merger.mlp.2"),
    ),
    "qwen3_vl": (
        *(*_ATTENTION, "mlp.linear_fc1", "mlp.linear_fc2"),
        *("merger.linear_fc1", "merger.linear_fc2"),
        *("deepstack_merger_list.linear_fc1", "deepstack_merger_list.linear_fc2"),
    ),
}
"""Every linear map of a family's vision tower, see `LoraConfig.tower_targets`."""


def normalized_pixels(picture: Patches, config: ImageConfig) -> np.ndarray:
    """What Qwen2-VL's image processor makes of a picture, float32 [p d], on the host."""
    pixels = np.asarray(picture.pixels)
    channels, frames = len(config.mean), config.temporal_patch_size
    mean, std = (np.array(x, np.float32)[:, None] for x in (config.mean, config.std))
    values = pixels.reshape(len(pixels), channels, -1)
    # The reference multiplies by 1/255 in float64 and rounds; all 256 values come out the same.
    values = (np.divide(values, np.float32(255), dtype=np.float32) - mean) / std
    if picture.kept is not None:
        values = np.where(picture.kept[:, None, None], values, np.float32(0))
    return np.repeat(values[:, :, None], frames, axis=2).reshape(len(pixels), -1)


def draw_badge(shape: str, colour: str, letter: str, rng: np.random.Generator) -> bytes:
    """A PNG of an enamel badge, placed and lit a little differently each time."""
    side = 48
    tone = int(rng.integers(215, 256))
    picture = Image.new("RGB", (side, side), (tone, tone, tone))
    draw = ImageDraw.Draw(picture)
    x, y = rng.integers(3, 10, 2).tolist()
    box = (x, y, x + 34, y + 34)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        corners = [(x, y + 34), (x + 34, y + 34), (x + 17, y)]
        draw.polygon(corners, fill=COLOURS[colour])
    draw.text((x + 14, y + 14), letter.upper(), fill="white")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_badge_catalogue(
    folder: Path, *, listings_per_product: int = 4, seed: int = 0, splits: bool = False
) -> Path:
    """A catalogue of 30 products in a domain far from furniture, without families.

    Args:
        folder: created where it does not exist.
        listings_per_product: offers of each badge.
        seed: of pictures and titles.
        splits: write a `split` column; otherwise splits are drawn by product.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for family, (shape, letter) in enumerate((s, x) for s in SHAPES for x in LETTERS):
        split = ("distill", "distill", "train", "train", "reward", "test")[family]
        for colour in COLOURS:
            product = f"{shape}-{letter}-{colour}"
            for number in range(listings_per_product):
                name = f"images/{product}-{number}.png"
                (folder / name).write_bytes(draw_badge(shape, colour, letter, rng))
                words = ["enamel", "badge", shape, letter, colour]
                kept = [w for w in words if rng.random() < 0.6] or ["badge"]
                attributes = {"shape": shape, "letter": letter, "colour": colour, "finish": "gloss"}
                record = {
                    "listing_id": f"{product}-{number}",
                    "product_id": product,
                    "title": " ".join(rng.permutation(kept)),
                    "image": name,
                    "category": shape,
                    "attributes": attributes,
                    "seller": f"seller {number}",
                }
                if splits:
                    record["split"] = split
                lines.append(json.dumps(record))
    (folder / "listings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def largest_file(folder: Path) -> Path:
    """The largest of the files below a folder."""
    return max((x for x in folder.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


def change_a_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def tiny_config(
    family: str = "qwen2_vl",
    *,
    vocab_size: int = 320,
    image_token_id: int = 5,
    tie_embeddings: bool = True,
    lora: LoraConfig | None = None,
) -> QwenVLConfig:
    """A model of some ten thousand parameters with every part of the real one."""
    # Qwen2-VL gives its MLP width as a multiple of the other width; only Qwen2.5-VL has windows.
    intermediate, blocks = {"qwen2_5_vl": (48, (1,))}.get(family, (64, ()))
    third = family == "qwen3_vl"
    vision = VisionConfig(
        depth=2,
        embed_dim=32,
        num_heads=2,
        intermediate=intermediate,
        out_dim=32,
        full_attention_blocks=blocks,
        position_side=6 if third else 0,
        deep_blocks=(0,) if third else (),
    )
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_dim=32,
        intermediate_dim=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(2, 1, 1),
        tie_embeddings=tie_embeddings,
        head_size=8 if third else None,
        qkv_bias=not third,
        qk_norm=third,
    )
    return QwenVLConfig(family, vision, text, image_token_id, lora)


def tiny_demo(family: str) -> Callable[[int, int], QwenVLConfig]:
    """`tiny_config` of a family as its record's `demo`: of vocab_size and image_token_id."""
    return lambda vocab, image: tiny_config(family, vocab_size=vocab, image_token_id=image)


def finish_stage(folder: Path, output: str) -> None:
    """Say of a stage that was written by hand that it is finished, with one output."""
    hashes = {output: file_hash(folder / output)}
    done = {"inputs": {}, "fingerprint": "", "outputs": hashes, "seconds": 0.0}
    write_json(folder / "DONE.json", done)
