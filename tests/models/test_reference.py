"""All families against Hugging Face's implementation on random weights, part by part.

The live comparison needs torch. The golden file holds a choice of the reference's numbers for some
of the same cases, so that the check runs everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution
from afmrl_jax.models.embedder import ends, hidden_in_bins, unit
from afmrl_jax.models.generation import generate
from afmrl_jax.models.huggingface.folder import load_model, read_architecture
from afmrl_jax.models.huggingface.names import hub_tensors
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, write_tensors
from afmrl_jax.models.qwen_vl.pixels import normalized
from afmrl_jax.runtime.files import write_json
from tests.models.reference_cases import (
    IMAGE,
    NEW_TOKENS,
    PAD,
    THIRD,
    hub_config,
    make_batch,
    make_case,
    random_tensor,
)
from tests.models.reference_model import (
    GOLDEN,
    GOLDEN_CASES,
    build,
    comparable,
    kept,
    outputs,
)

CASES = [make_case(number) for number in (*range(44), *range(THIRD, THIRD + 44))]
TOLERANCE = 1e-4


def name_of(case):
    return case.name


def our_outputs(architecture, params, batch, rows):
    """What `reference_model.outputs` gives, by our model."""

    @jax.jit
    def run(params, batch):
        model = architecture.bind(params)
        merged = model.visual_of(batch)
        numbers = normalized(batch.patches, batch.normalization, IMAGE.temporal_patch_size)
        blocks = model.visual_tower.block_outputs(
            numbers, batch.patch_segment, batch.patch_position
        )
        embedded = model.inputs(batch, merged)
        layers = model.model.layer_outputs(embedded, batch.positions, batch.token_mask)
        hidden = model.model(embedded, batch.positions, batch.token_mask)
        vectors = unit(hidden_in_bins(hidden, ends(batch.token_mask)))
        greedy = generate(
            model,
            batch,
            group_size=1,
            max_new_tokens=NEW_TOKENS,
            temperature=0.0,
            key=jax.random.key(0),
            eos_id=-1,
            pad_id=PAD,
        )
        seen = (merged.tokens, *merged.deep)
        return blocks, seen, layers, model.logits(hidden), vectors, greedy.tokens[:, 0]

    names = ("blocks", "merged", "layers", "logits", "vectors", "greedy")
    found = run(params, jax.tree.map(jnp.asarray, batch))
    found = dict(zip(names, jax.tree.map(np.asarray, found), strict=True))
    order = picture_order(batch, rows)
    depth, _, _, width = found["blocks"].shape
    found["blocks"] = found["blocks"].reshape(depth, -1, width)[:, order]
    seen = [x.reshape(-1, x.shape[-1])[order[::4] // 4] for x in found["merged"]]
    found["merged"] = seen[0]
    found |= {f"deep_{n}": x for n, x in enumerate(seen[1:])}
    return found | {"positions": np.asarray(batch.positions)}


def picture_order(batch, rows):
    """Places in the flattened bins of all patches, row by row, as the reference stores them."""
    out = []
    for start, row in zip(batch.visual_start, rows, strict=True):
        count = sum(len(picture.pixels) for picture in row.pictures)
        out.append(4 * int(start) + np.arange(count))
    return np.concatenate(out)


def assert_equal(found, expected, tolerance):
    for name, value in expected.items():
        limit = 0 if name in ("positions", "greedy") else tolerance
        np.testing.assert_allclose(found[name], value, atol=limit, rtol=0, err_msg=name)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # The reference's own warnings are not ours to mend.
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_part_equals_the_reference(case, tmp_path):
    pytest.importorskip("torch", reason="the reference needs `pip install torch`")
    batch, rows = make_batch(case)
    expected = comparable(outputs(build(case, tmp_path), batch, rows), batch)
    # Layers in a loop, as those of large models are, take a third of the compiling.
    model = load_model(tmp_path, execution=Execution(scan=case.number % 3 > 0))
    found = our_outputs(*model, batch, rows)
    assert_equal(comparable(found, batch), expected, TOLERANCE)


def write_case(case, folder):
    """The case's weights as published: a flat config.json and one file."""
    write_json(folder / "config.json", hub_config(case))
    tensors = [
        TensorToWrite(
            t.name,
            t.shape,
            np.dtype(np.float32),
            lambda t=t: random_tensor(case, t.name, t.shape),
        )
        for t in hub_tensors(read_architecture(folder))
    ]
    write_tensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize(
    # Every other one, so that each family's layers are looped over and written out.
    ("number", "scan"),
    [(number, bool(place % 2)) for place, number in enumerate(GOLDEN_CASES)],
)
def test_every_part_equals_the_golden_numbers(number, scan, tmp_path):
    case = make_case(number)
    write_case(case, tmp_path)
    batch, rows = make_batch(case)
    model = load_model(tmp_path, execution=Execution(scan=scan))
    found = comparable(our_outputs(*model, batch, rows), batch)
    with np.load(GOLDEN) as golden:
        expected = {n: golden[f"{number}/{n}"] for n in found}
    assert_equal({n: kept(x) for n, x in found.items()}, expected, TOLERANCE)


def test_golden_cases_cover_both_families_and_all_sides():
    chosen = [make_case(number) for number in GOLDEN_CASES]
    for field, values in {
        "family": {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"},
        "side": {"left", "right", "none"},
        "batch": {1, 3, 8},
        "ratio": {1, 2, 4, 7},
        "tied": {True, False},
    }.items():
        assert {getattr(case, field) for case in chosen} == values


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [0, 1, 14, 27])
def test_bfloat16_vectors_lie_as_near_to_float32_as_the_references_do(number, tmp_path):
    torch = pytest.importorskip("torch", reason="the reference needs `pip install torch`")
    case = make_case(number)
    batch, rows = make_batch(case)
    reference = build(case, tmp_path)
    exact = outputs(reference, batch, rows)["vectors"]
    theirs = _bfloat16_vectors(torch, reference.bfloat16(), batch, rows)
    architecture, params = load_model(
        tmp_path, execution=Execution(dtype="bfloat16"), dtype="bfloat16"
    )
    ours = our_outputs(architecture, params, batch, rows)["vectors"]
    distance = np.linalg.norm(ours - exact, axis=1)
    allowed = np.linalg.norm(theirs - exact, axis=1)
    # Unit vectors: 0.03 is a cosine of 0.9995. Rounding differs, its size does not.
    assert distance.max() < max(0.03, 2 * allowed.max())


def _bfloat16_vectors(torch, model, batch, rows):
    from tests.models.reference_model import arguments

    given = arguments(batch, rows)
    given["pixel_values"] = given["pixel_values"].bfloat16()
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states[-1].float().numpy()
    last = [np.flatnonzero(mask)[-1] for mask in batch.token_mask]
    vectors = states[np.arange(len(last)), last]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
