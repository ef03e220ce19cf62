"""Random models and batches on which ours is compared with Hugging Face's, from a number each."""

import dataclasses
import zlib
from types import SimpleNamespace

import numpy as np

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.collate import Row, collate
from afmrl_jax.data.batching.images import cut

PAD, IMAGE_PAD, IMAGE_START, IMAGE_END, TEXT_END = 2, 90, 92, 93, 80
VOCABULARY = 96
IMAGE = ImageConfig(patch_size=14, temporal_patch_size=2, max_pixels=14 * 14 * 280, max_pictures=3)
THIRD = 100
"""Cases from this number on are of Qwen3-VL."""
GRIDS = ((2, 2), (4, 6), (10, 4), (2, 8), (20, 14), (6, 6), (4, 2), (8, 14), (14, 20), (6, 10))
"""Patches; merged they are half of it, from 1 x 1 to 10 x 7, few divisible by the window of 2."""
NEW_TOKENS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs from case to case."""

    number: int
    family: str
    ratio: int
    """Query heads a key head."""
    tied: bool
    side: str
    batch: int
    theta: float
    eps: float
    section: tuple[int, int, int]
    grids: tuple[tuple[tuple[int, int], ...], ...]
    """Pictures of each row."""

    @property
    def name(self):
        return f"{self.number}-{self.family}-gqa{self.ratio}-b{self.batch}-{self.side}"


def make_case(number):
    rng = np.random.default_rng([7, number])
    batch = (1, 3, 8)[number // 2 % 3]
    rows = []
    for row in range(batch):
        # The last of several rows has no picture; others have up to three.
        count = 0 if row == batch - 1 and batch > 1 else int(rng.integers(1, 4 if batch < 8 else 2))
        chosen = [GRIDS[int(i)] for i in rng.integers(0, len(GRIDS), count)]
        rows.append(tuple(chosen))
    first = (GRIDS[number % len(GRIDS)], *rows[0][1:])
    return Case(
        number,
        family="qwen3_vl" if number >= THIRD else ("qwen2_vl", "qwen2_5_vl")[number % 2],
        ratio=(1, 2, 4, 7)[number // 3 % 4],
        tied=bool(number // 2 % 2),
        side=("right", "left", "none")[number // 5 % 3],
        batch=batch,
        theta=(1e4, 1e6, 5e5)[number % 3],
        eps=(1e-6, 1e-5, 1e-4)[number // 7 % 3],
        section=((2, 3, 3), (4, 2, 2), (1, 4, 3))[number // 4 % 3],
        grids=(first, *rows[1:]),
    )


def hub_config(case):
    """config.json of the case, as published."""
    heads = 7 if case.ratio == 7 else 4
    if case.family == "qwen3_vl":
        return _nested_config(case, heads)
    vision = {"depth": 3, "num_heads": 2, "patch_size": 14, "in_channels": 3}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    if case.family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 16 * heads, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 16 * heads}
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    return {
        "architectures": [
            {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[case.family]
            + "ForConditionalGeneration"
        ],
        "model_type": case.family,
        "vocab_size": VOCABULARY,
        "hidden_size": 16 * heads,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // case.ratio,
        "hidden_act": "silu",
        "rms_norm_eps": case.eps,
        "rope_theta": case.theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(case.section)},
        "tie_word_embeddings": case.tied,
        "image_token_id": IMAGE_PAD,
        "video_token_id": 91,
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": PAD,
        "vision_config": {"model_type": case.family, **vision},
    }


def _nested_config(case, heads):
    # Half of them with heads that are wider than their share of the hidden width, as in the 4B.
    hidden = 16 * heads if case.number % 2 else 48
    depth = 4
    deep = ([0, 2], [1], [0, 1, 3], [])[case.number % 4]
    rope = {"mrope_interleaved": True, "mrope_section": list(case.section)}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": case.tied,
        "image_token_id": IMAGE_PAD,
        "video_token_id": 91,
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // case.ratio,
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": case.eps,
            "rope_theta": case.theta,
            "rope_scaling": {"rope_type": "default", **rope},
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": PAD,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": depth,
            "hidden_size": 32,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": 48,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": (16, 36, 144)[case.number % 3],
            "deepstack_visual_indexes": deep,
        },
    }


def random_tensor(case, name, shape):
    """A tensor by its published name; norms lie around one, nothing at its initial value."""
    rng = np.random.default_rng([case.number, zlib.crc32(name.encode())])
    values = rng.normal(size=shape).astype(np.float32)
    if len(shape) == 1:
        around = 1.0 if "norm" in name or "ln_q" in name else 0.0
        return np.float32(around) + np.float32(0.1) * values * (name.endswith(("weight", "bias")))
    fan_in = np.prod(shape[1:])
    return values * np.float32(0.5 if "embed" in name and "patch" not in name else fan_in**-0.5)


def make_batch(case):
    """Our batch; rows begin and end with text, and differ in length unless they have no padding."""
    rng = np.random.default_rng([11, case.number])
    rows = []
    for grids in case.grids:
        tokens = rng.integers(3, TEXT_END, int(rng.integers(1, 5))).tolist()
        pictures = []
        for height, width in grids:
            pixels = rng.integers(0, 256, (height * 14, width * 14, 3), np.uint8)
            pictures.append(cut(pixels, IMAGE))
            tokens += [IMAGE_START, *[IMAGE_PAD] * (height * width // 4), IMAGE_END]
            tokens += rng.integers(3, TEXT_END, int(rng.integers(0, 3))).tolist()
        tokens += rng.integers(3, TEXT_END, int(rng.integers(2, 9))).tolist()
        rows.append(Row(tokens, tuple(pictures)))
    longest = max(len(row.tokens) for row in rows)
    if case.side == "none":
        rows = [
            Row([*r.tokens, *rng.integers(3, TEXT_END, longest - len(r.tokens))], r.pictures)
            for r in rows
        ]
    return collate_rows(rows, "left" if case.side == "left" else "right"), rows


def collate_rows(rows, side):
    ids = SimpleNamespace(pad_id=PAD, image_pad_id=IMAGE_PAD)
    return collate(rows, ids, IMAGE, max(len(row.tokens) for row in rows), side=side)
