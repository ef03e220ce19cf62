"""Hugging Face's numbers for a case (needs torch), and the golden file made of them.

python -m tests.models.reference_model      # writes tests/models/golden/reference.npz
"""

from pathlib import Path

import numpy as np

from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import normalized_pixels
from tests.models.reference_cases import (
    IMAGE,
    IMAGE_PAD,
    NEW_TOKENS,
    collate_rows,
    hub_config,
    make_batch,
    make_case,
    random_tensor,
)

GOLDEN = Path(__file__).parent / "golden" / "reference.npz"
GOLDEN_CASES = (0, 1, 5, 8, 14, 19, 22, 27, 100, 101, 102, 103, 109, 117, 124, 138)
KEPT = 48


def build(case, folder):
    """The reference on the case's weights, saved to `folder` as the library saves it."""
    import torch
    import transformers

    from afmrl_jax.models.huggingface.names import canonical_name

    write_json(folder / "config.json", hub_config(case))
    config = transformers.AutoConfig.from_pretrained(folder)
    name = hub_config(case)["architectures"][0]
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            value = random_tensor(case, canonical_name(key), tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    model.save_pretrained(folder)
    return model


def arguments(batch, rows):
    import torch

    tokens = torch.tensor(batch.tokens, dtype=torch.long)
    pictures = [picture for row in rows for picture in row.pictures]
    return {
        "input_ids": tokens,
        "attention_mask": torch.tensor(batch.token_mask.astype(np.int64)),
        "pixel_values": torch.tensor(
            np.concatenate([normalized_pixels(x, IMAGE) for x in pictures])
        ),
        "image_grid_thw": torch.tensor([[1, *x.grid] for x in pictures]),
        # Without it Qwen2.5-VL silently falls back to positions in one dimension.
        "mm_token_type_ids": (tokens == IMAGE_PAD).int(),
    }


def hooked(modules):
    """Lists that fill with what each module hands on."""
    seen = [[] for _ in modules]

    def keep(own):
        return lambda _, __, out: own.append(out[0] if isinstance(out, tuple) else out)

    return seen, [m.register_forward_hook(keep(own)) for m, own in zip(modules, seen, strict=True)]


def outputs(model, batch, rows):
    """All that is compared, as NumPy arrays: values at padding are arbitrary."""
    import torch

    given = arguments(batch, rows)
    positions, _ = model.model.get_rope_index(
        **{k: v for k, v in given.items() if k != "pixel_values"}
    )
    tower = model.model.visual
    blocks, hooks = hooked(tower.blocks)
    layers, more = hooked(model.model.language_model.layers)
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
        block_outputs = torch.stack([x[0] for x in blocks]).numpy()
        layer_outputs = torch.stack([x[0] for x in layers]).numpy()
        seen = tower(given["pixel_values"], grid_thw=given["image_grid_thw"])
        merged, deep = seen.pooler_output, getattr(seen, "deepstack_features", None) or []
        # What a layer hands on is not yet what the next one gets.
        pictured = (given["input_ids"] == IMAGE_PAD).numpy()
        for number, added in enumerate(deep):
            layer_outputs[number][pictured] += added.numpy()
        for hook in hooks + more:
            hook.remove()
        greedy = _greedy(model, rows)
    if model.config.model_type == "qwen2_5_vl":
        block_outputs = _unpermuted(tower, given["image_grid_thw"], block_outputs)
    states = out.hidden_states[-1].numpy()
    last = [np.flatnonzero(mask)[-1] for mask in batch.token_mask]
    vectors = states[np.arange(len(last)), last]
    return {
        "positions": positions.numpy().swapaxes(0, 1),
        "blocks": block_outputs,
        "merged": merged.numpy(),
        **{f"deep_{n}": x.numpy() for n, x in enumerate(deep)},
        "layers": layer_outputs,
        "logits": out.logits.numpy(),
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "greedy": greedy,
    }


def _greedy(model, rows):
    """Its generation pads on the left: other padding gives it other texts."""
    batch = collate_rows(rows, "left")
    model.model.rope_deltas = None  # State of the last call.
    # Without an end, so that all texts have the same length.
    model.generation_config.eos_token_id = None
    given = arguments(batch, rows)
    tokens = model.generate(**given, do_sample=False, max_new_tokens=NEW_TOKENS)
    return tokens[:, batch.tokens.shape[1] :].numpy()


def _unpermuted(tower, grids, values):
    """Patches in the order of the input; the reference sorts them by window in between."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    depth, count, width = values.shape
    grouped = values.reshape(depth, count // 4, 4, width)
    return grouped[:, np.argsort(order.numpy())].reshape(values.shape)


def kept(values):
    """A fixed choice of an array's numbers, few enough to store."""
    flat = values.reshape(-1)
    chosen = np.random.default_rng(flat.size).choice(flat.size, min(KEPT, flat.size), False)
    return flat[np.sort(chosen)]


def write_golden():
    import tempfile

    arrays = {}
    for number in GOLDEN_CASES:
        case = make_case(number)
        batch, rows = make_batch(case)
        with tempfile.TemporaryDirectory() as folder:
            found = outputs(build(case, Path(folder)), batch, rows)
        found = comparable(found, batch)
        arrays |= {f"{number}/{name}": kept(value) for name, value in found.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


def comparable(found, batch):
    """The same with zeros at padding."""
    seen = batch.token_mask
    return found | {
        "positions": found["positions"] * seen[:, None],
        "layers": found["layers"] * seen[None, :, :, None],
        "logits": found["logits"] * seen[:, :, None],
    }


if __name__ == "__main__":
    write_golden()
