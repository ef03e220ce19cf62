"""Both families against Hugging Face's implementation on random tiny weights (needs torch)."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from afmrl_jax.models.weights import load_hub_tensors, to_hub_tensors
from safetensors.numpy import load_file

from afmrl_jax.data.batches import Row, collate
from afmrl_jax.data.images import _cut
from afmrl_jax.model_config import ImageConfig, QwenVLConfig, TextConfig, VisionConfig
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.functional import Architecture

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


def batch_of(rows, grids, seed=0, side="right"):
    """Our batch and the reference's arguments: rows of tokens, each with its pictures' grids."""
    config = ImageConfig(
        patch_size=14, temporal_patch_size=2, max_pixels=14 * 14 * 64, max_pictures=3
    )
    rng = np.random.default_rng(seed)

    def picture(grid):
        shape = (grid[0] * 14, grid[1] * 14, 3)
        return _cut(rng.normal(size=shape).astype(np.float32), config)

    rows = [
        Row(tokens, tuple(map(picture, sizes))) for tokens, sizes in zip(rows, grids, strict=True)
    ]
    ids = SimpleNamespace(pad_id=2, image_pad_id=IMAGE_PAD)
    length = max(len(row.tokens) for row in rows)
    batch = collate(rows, ids, config, length, side=side)
    tokens = torch.tensor(batch.tokens, dtype=torch.long)
    pictures = [picture for row in rows for picture in row.pictures]
    reference = {
        "input_ids": tokens,
        "attention_mask": torch.tensor(batch.token_mask.astype(np.int64)),
        "pixel_values": torch.tensor(np.concatenate([x.pixels for x in pictures])),
        "image_grid_thw": torch.tensor([[1, *x.grid] for x in pictures]),
        "mm_token_type_ids": (tokens == IMAGE_PAD).int(),
    }
    return batch, reference


def with_pictures(before, grids, after):
    """A row of tokens with the places of pictures between two texts."""
    pads = [[92, *[IMAGE_PAD] * (rows * columns // 4), 93] for rows, columns in grids]
    return [*before, *(token for picture in pads for token in picture), *after]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_rows_with_any_number_of_pictures_equal_the_reference(family, side, tmp_path):
    reference = reference_model(family, True)
    reference.save_pretrained(tmp_path)
    architecture = Architecture.of(our_config(family, True))
    model = architecture.bind(architecture.init(0))
    load_hub_tensors(model, load_file(tmp_path / "model.safetensors"), str(tmp_path))
    grids = [[(4, 6), (2, 8)], [], [(2, 2)], [(8, 2), (2, 2), (4, 4)]]
    rows = [with_pictures([5, n], sizes, [17, 18, n, 1]) for n, sizes in enumerate(grids, 20)]
    batch, arguments = batch_of(rows, grids, side=side)
    # Six pictures of 96 patches in all share one bin of 192.
    assert batch.patches.shape[:2] == (1, 192)
    expected_positions, _ = reference.model.get_rope_index(
        **{k: v for k, v in arguments.items() if k != "pixel_values"}
    )
    np.testing.assert_array_equal(
        batch.positions * batch.token_mask[:, None],
        expected_positions.numpy().swapaxes(0, 1) * batch.token_mask[:, None],
    )
    with torch.no_grad():
        expected = reference(**arguments).logits.numpy()
    hidden = model(jax.tree.map(jax.numpy.asarray, batch))
    seen = batch.token_mask
    found = np.asarray(model.logits(hidden))
    np.testing.assert_allclose(found[seen], expected[seen], atol=1e-4)


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

    rows = [with_pictures([5], [grid], [17, 18, 1]), [5, 40, 41, 1]]
    batch, arguments = batch_of(rows, [[grid], []])
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
