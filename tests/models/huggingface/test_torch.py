"""Hub folders and Hugging Face's own code: it reads what we write, and we what it writes."""

import json

import numpy as np
import pytest

from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import family as family_of
from afmrl_jax.models.huggingface.config import from_hub_config, to_hub_config
from afmrl_jax.models.huggingface.folder import load_model, save_model
from afmrl_jax.models.huggingface.names import canonical_name, published_name
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.testing import tiny_config

torch = pytest.importorskip("torch", reason="the reference needs `pip install torch`")

from tests.models.reference import (  # noqa: E402
    FAMILIES,
    assert_same_logits,
    hub_class,
    our_config,
    reference_model,
)

# Warnings of the reference are not ours to mend.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def stored_bytes(folder):
    found = {}
    for path in folder.glob("model*.safetensors"):
        for name, tensor in stored_tensors(path).items():
            found[canonical_name(name)] = (str(tensor.dtype), tensor.open().tobytes())
    return found


def flatten_config(folder):
    """The config.json of a published model: fields of the text at the top, mrope as a scaling."""
    raw = json.loads((folder / "config.json").read_text())
    text = raw.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("model_type", None)
    flat = {
        **text,
        **raw,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": raw.pop("dtype", "float32"),
    }
    (folder / "config.json").write_text(json.dumps(flat))


def rename(folder, style, family):
    """Give the tensors the names of a published file, or of a model in memory."""
    for path in folder.glob("model*.safetensors"):
        tensors = {n: np.array(x.open()) for n, x in stored_tensors(path).items()}
        out = []
        for name, value in tensors.items():
            name = published_name(canonical_name(name), family)
            if family == "qwen3_vl":
                pass  # They are the same.
            elif style == "memory" and name.startswith("visual."):
                name = "model." + name
            elif style == "memory" and name.startswith("model."):
                name = "model.language_model." + name.removeprefix("model.")
            out.append(TensorToWrite(name, value.shape, value.dtype, lambda x=value: x))
        write_tensors(path, out)


@pytest.mark.parametrize("layout", ["nested", "flat"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_the_folder_read(family, tied, layout, tmp_path):
    reference = reference_model(family, tied)
    reference.save_pretrained(tmp_path)
    if layout == "flat":
        if family == "qwen3_vl":
            pytest.skip("its files were never flat")
        flatten_config(tmp_path)
        rename(tmp_path, "memory", family)
    architecture, params = load_model(tmp_path)
    assert architecture.config == our_config(family, tied)
    assert_same_logits(architecture, params, reference)


@pytest.mark.parametrize("style", ["published", "memory"])
@pytest.mark.parametrize("shards", ["one file", "many"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_hub_and_back_is_bit_exact(family, dtype, shards, style, tmp_path):
    reference = reference_model(family, False, dtype)
    large = shards == "one file"
    reference.save_pretrained(tmp_path / "hub", max_shard_size="5GB" if large else "50KB")
    rename(tmp_path / "hub", style, family)
    if style == "memory" and not large:
        index = tmp_path / "hub" / "model.safetensors.index.json"
        found = {}
        for path in (tmp_path / "hub").glob("model*.safetensors"):
            found |= dict.fromkeys(stored_tensors(path), path.name)
        index.write_text(json.dumps({"weight_map": found}))
    architecture, params = load_model(tmp_path / "hub")
    assert {str(x.dtype) for x in params.values()} == {dtype}
    save_model(
        tmp_path / "ours",
        architecture,
        params,
        like=tmp_path / "hub",
        shard_bytes=10**9 if large else 50_000,
    )
    assert len(list((tmp_path / "ours").glob("model*.safetensors"))) == 1 or not large
    assert stored_bytes(tmp_path / "ours") == stored_bytes(tmp_path / "hub")
    assert len(stored_bytes(tmp_path / "ours")) > 30
    again = hub_class(family).from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == getattr(torch, dtype)
    for (name, ours), theirs in zip(
        again.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_torch_reads_a_model_that_never_was_on_the_hub(family, tied, tmp_path):
    architecture = Architecture.of(our_config(family, tied))
    rng = np.random.default_rng(0)
    params = {
        n: x + np.float32(0.05) * rng.normal(size=x.shape).astype(np.float32)
        for n, x in architecture.init(3).items()
    }
    save_model(tmp_path / "model", architecture, params)
    reference, loading = hub_class(family).from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(architecture, params, reference.eval())


@pytest.mark.parametrize("family", FAMILIES)
def test_demo_models_of_small_single_frame_patches(family, tmp_path):
    config = family_of(family).demo(96, 90)
    architecture = Architecture.of(config)
    params = architecture.init(3)
    save_model(tmp_path / "model", architecture, params)
    reference = hub_class(family).from_pretrained(tmp_path / "model").eval()
    assert_same_logits(architecture, params, reference, patch_size=8, temporal_patch_size=1)


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_our_config_json_means_the_same_to_transformers(family, demo, tmp_path):
    from transformers import AutoConfig

    config = family_of(family).demo(300, 7) if demo else tiny_config(family)
    raw = to_hub_config(config, dtype="bfloat16", ids={"vision_start_token_id": 3})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == family
    theirs.save_pretrained(tmp_path / "again")
    nested = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "text_config" in nested
    assert from_hub_config(nested, "nested") == from_hub_config(raw, "flat")
    assert theirs.vision_start_token_id == 3
