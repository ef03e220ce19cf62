"""Both families against Hugging Face's implementation on random tiny weights (needs torch)."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from afmrl_jax.data.batches import VLBatch, mrope_positions
from afmrl_jax.data.images import Patches, _cut
from afmrl_jax.model_config import ImageConfig, QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.functional import Architecture
from afmrl_jax.models.weights import load_hub_tensors, to_hub_tensors

torch = pytest.importorskip("torch", reason="the reference needs `pip install torch`")

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
}


def reference_model(family, tied):
    import transformers

    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=TEXT,
        vision_config=VISION[family],
        image_token_id=IMAGE_PAD,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Away from the shipped zeros and ones, or a swapped bias would not show.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def our_config(family, tied):
    vision = VisionConfig(
        depth=2,
        embed_dim=32,
        num_heads=2,
        intermediate={"qwen2_vl": 64, "qwen2_5_vl": 48}[family],
        out_dim=64,
        patch_size=14,
        temporal_patch_size=2,
        window_size=56,
        full_attention_blocks=(1,) if family == "qwen2_5_vl" else (),
    )
    text = TextConfig(96, 64, 128, 2, 4, 2, mrope_section=(2, 3, 3), tie_embeddings=tied)
    return QwenVLConfig(family, vision, text, IMAGE_PAD)


def batch_of(rows, grid, seed=0):
    """Our batch and the reference's arguments: rows of tokens, the first with a picture."""
    config = ImageConfig(patch_size=14, temporal_patch_size=2, max_pixels=14 * 14 * 64)
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(grid[0] * 14, grid[1] * 14, 3)).astype(np.float32)
    picture: Patches = _cut(pixels, config)
    length = max(map(len, rows))
    tokens = np.full((len(rows), length), 2, np.int32)
    mask = np.zeros((len(rows), length), bool)
    positions = np.zeros((len(rows), 3, length), np.int32)
    patches = np.zeros((len(rows), 64, config.patch_dim), np.float32)
    segment = np.zeros((len(rows), 64), np.int32)
    places = np.zeros((len(rows), 64, 2), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        mask[number, : len(row)] = True
        merged = (grid[0] // 2, grid[1] // 2) if number == 0 else None
        positions[number, :, : len(row)] = mrope_positions(row, merged, IMAGE_PAD)
    count = len(picture.pixels)
    patches[0, :count], segment[0, :count] = picture.pixels, 1
    places[0, :count] = picture.position
    ids = torch.tensor(tokens, dtype=torch.long)
    reference = {
        "input_ids": ids,
        "attention_mask": torch.tensor(mask.astype(np.int64)),
        "pixel_values": torch.tensor(picture.pixels),
        "image_grid_thw": torch.tensor([[1, *grid]]),
        "mm_token_type_ids": (ids == IMAGE_PAD).int(),
    }
    return VLBatch(tokens, mask, positions, patches, segment, places), reference


@pytest.mark.filterwarnings("ignore")  # The reference's own warnings are not ours to mend.
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("grid", [(4, 6), (10, 4), (2, 2)])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_logits_and_embeddings_equal_the_reference(family, grid, tied, tmp_path):
    reference = reference_model(family, tied)
    reference.save_pretrained(tmp_path)
    architecture = Architecture.of(our_config(family, tied))
    model = architecture.bind(architecture.init(0))
    tensors = load_file(tmp_path / "model.safetensors")
    load_hub_tensors(model, tensors, str(tmp_path))

    pads = [IMAGE_PAD] * (grid[0] * grid[1] // 4)
    rows = [[5, 92, *pads, 93, 17, 18, 1], [5, 40, 41, 1]]
    batch, arguments = batch_of(rows, grid)
    with torch.no_grad():
        expected = reference(**arguments, output_hidden_states=True)
    hidden = model(jax.tree.map(jax.numpy.asarray, batch))
    logits = np.asarray(model.logits(hidden))
    vectors = np.asarray(embed_batch(model, jax.tree.map(jax.numpy.asarray, batch)))
    for number, row in enumerate(rows):
        last = len(row)
        np.testing.assert_allclose(
            logits[number, :last], expected.logits[number, :last].numpy(), atol=1e-4
        )
        state = expected.hidden_states[-1][number, last - 1].numpy()
        np.testing.assert_allclose(vectors[number], state / np.linalg.norm(state), atol=1e-4)

    written = to_hub_tensors(model)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
