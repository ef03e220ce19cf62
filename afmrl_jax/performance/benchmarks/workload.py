"""The model and rows for both sides: one set of weights, one batch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from PIL import Image

from afmrl_jax.config import ImageConfig, LoraConfig, QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.data.batching.collate import Row, VLBatch, collate
from afmrl_jax.data.batching.images import patchify

PATCH = 14
MERGE = 2
FRAMES = 2
TOKEN = SimpleNamespace(pad_id=0, vision_start=1, vision_end=2, image_pad_id=3)
"""Special ids; ids from `FIRST_WORD` on are words."""
FIRST_WORD = 8


@dataclass(frozen=True)
class Size:
    """A model in Qwen2-VL's proportions, and the rows it reads."""

    layers: int = 12
    hidden_dim: int = 512
    intermediate_dim: int = 1408
    heads: int = 8
    kv_heads: int = 2
    vocab_size: int = 16384
    vision_depth: int = 6
    vision_dim: int = 320
    side: int = 8
    """Visual tokens along one side of the square picture."""
    text_tokens: int = 64
    pairs: int = 4
    """Pairs in a training batch; it has twice as many rows."""
    new_tokens: int = 64
    """Tokens to generate."""

    @classmethod
    def tiny(cls) -> Size:
        """For tests: every part takes seconds."""
        return cls(2, 32, 64, 2, 1, 64, 2, 16, side=2, text_tokens=8, pairs=2, new_tokens=4)

    @property
    def config(self) -> QwenVLConfig:
        """Our configuration of the model, without adapters."""
        head = self.hidden_dim // self.heads
        quarter = head // 8
        text = TextConfig(
            self.vocab_size,
            self.hidden_dim,
            self.intermediate_dim,
            self.layers,
            self.heads,
            self.kv_heads,
            mrope_section=(head // 2 - 2 * quarter, quarter, quarter),
        )
        vision = VisionConfig(
            depth=self.vision_depth,
            embed_dim=self.vision_dim,
            num_heads=max(1, self.vision_dim // 64),
            intermediate=4 * self.vision_dim,
            out_dim=self.hidden_dim,
            patch_size=PATCH,
            temporal_patch_size=FRAMES,
            merge_size=MERGE,
        )
        return QwenVLConfig("qwen2_vl", vision, text, TOKEN.image_pad_id)

    @property
    def lora(self) -> LoraConfig:
        """The adapters of the training step."""
        return LoraConfig()

    def describe(self) -> dict[str, int]:
        """Numbers that a reader of the results needs."""
        return {**vars(self), "visual_tokens": self.side**2}


def make_rows(size: Size, count: int, seed: int = 0) -> VLBatch:
    """Rows of a picture and words, no padding: VLBatch of [count, visual + text tokens]."""
    rng = np.random.default_rng(seed)
    pixels = size.side * PATCH * MERGE
    config = ImageConfig(
        patch_size=PATCH,
        temporal_patch_size=FRAMES,
        min_pixels=pixels**2,
        max_pixels=pixels**2,
        pack_shares=(1.0,),
    )
    rows = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), np.uint8)).save(file, "PNG")
        words = rng.integers(FIRST_WORD, size.vocab_size, size.text_tokens - 2).tolist()
        places = [TOKEN.image_pad_id] * size.side**2
        tokens = [*words[:4], TOKEN.vision_start, *places, TOKEN.vision_end, *words[4:]]
        rows.append(Row(tokens, (patchify(file.getvalue(), config),)))
    return collate(rows, TOKEN, config, len(rows[0].tokens))
