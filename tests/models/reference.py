"""Tiny models of Hugging Face's implementation with random weights (needs torch)."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.data.batching.collate import Row, collate
from afmrl_jax.data.batching.images import cut
from afmrl_jax.testing import normalized_pixels

torch = pytest.importorskip("torch", reason="the reference needs `pip install torch`")

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMAGE_PAD = 90
TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
VISION = {
    "qwen2_vl": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "qwen3_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0],
    },
}


def hub_class(family):
    import transformers

    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    return getattr(transformers, f"{name}ForConditionalGeneration")


def reference_model(family, tied, dtype="float32"):
    """Random weights, none at the zeros and ones that would hide a swapped bias."""
    config = hub_class(family).config_class(
        text_config=TEXT | ({"head_dim": 16} if family == "qwen3_vl" else {}),
        vision_config=VISION[family],
        image_token_id=IMAGE_PAD,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = hub_class(family)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(getattr(torch, dtype))


def our_config(family, tied):
    third = family == "qwen3_vl"
    vision = VisionConfig(
        depth=2,
        embed_dim=32,
        num_heads=2,
        intermediate=64 if family == "qwen2_vl" else 48,
        out_dim=64,
        patch_size=14,
        temporal_patch_size=2,
        window_size=56,
        full_attention_blocks=(1,) if family == "qwen2_5_vl" else (),
        position_side=6 if third else 0,
        deep_blocks=(0,) if third else (),
    )
    text = TextConfig(
        96,
        64,
        128,
        2,
        4,
        2,
        mrope_section=(2, 3, 3),
        tie_embeddings=tied,
        head_size=16 if third else None,
        qkv_bias=not third,
        qk_norm=third,
    )
    return QwenVLConfig(family, vision, text, IMAGE_PAD)


def rows_with_pictures(patch_size=14, temporal_patch_size=2):
    """Our batch of a row with a picture and one without, and the reference's arguments."""
    config = ImageConfig(
        patch_size=patch_size,
        temporal_patch_size=temporal_patch_size,
        min_pixels=4 * patch_size**2,
        max_pixels=patch_size**2 * 64,
    )
    grid = (4, 6)
    shape = (grid[0] * patch_size, grid[1] * patch_size, 3)
    picture = cut(np.random.default_rng(0).integers(0, 256, shape, np.uint8), config)
    pads = [IMAGE_PAD] * (grid[0] * grid[1] // 4)
    rows = [Row([5, 92, *pads, 93, 17, 18, 1], (picture,)), Row([5, 40, 41, 1])]
    ids = SimpleNamespace(pad_id=2, image_pad_id=IMAGE_PAD)
    batch = collate(rows, ids, config, max(len(x.tokens) for x in rows))
    tokens = torch.tensor(batch.tokens, dtype=torch.long)
    arguments = {
        "input_ids": tokens,
        "attention_mask": torch.tensor(batch.token_mask.astype(np.int64)),
        "pixel_values": torch.tensor(normalized_pixels(picture, config)),
        "image_grid_thw": torch.tensor([[1, *grid]]),
        # Without it Qwen2.5-VL silently takes positions along the text.
        "mm_token_type_ids": (tokens == IMAGE_PAD).int(),
    }
    return jax.tree.map(jax.numpy.asarray, batch), arguments


# One function, so that models that are alike share its program.
@partial(jax.jit, static_argnums=0)
def logits(architecture, params, batch):
    """Of our model, at every token."""
    model = architecture.bind(params)
    return model.logits(model(batch))


def assert_same_logits(architecture, params, reference, **patches):
    """Our model and one of torch say the same of pictures and words, within 1e-4."""
    batch, arguments = rows_with_pictures(**patches)
    found = np.asarray(logits(architecture, params, batch))
    with torch.no_grad():
        expected = reference(**arguments).logits.float().numpy()
    seen = np.asarray(batch.token_mask)
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-4)
