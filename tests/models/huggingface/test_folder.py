"""Models as Hugging Face folders: read, written, and refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.families import family as family_of
from afmrl_jax.models.huggingface.config import from_hub_config, to_hub_config
from afmrl_jax.models.huggingface.folder import load_model, save_model
from afmrl_jax.models.huggingface.read import hub_files
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import shardings
from afmrl_jax.testing import tiny_config

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
INDEX = "model.safetensors.index.json"


def rewrite(folder, change):
    """Write the one file of a folder anew with tensors changed by `change(dict of arrays)`.

    The folder is then one of other people's: it has no hashes.
    """
    path = folder / "model.safetensors"
    (folder / "manifest.json").unlink(missing_ok=True)
    tensors = {name: np.array(x.open()) for name, x in stored_tensors(path).items()}
    change(tensors)
    write_tensors(
        path,
        [TensorToWrite(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()],
    )


@pytest.fixture
def saved(tmp_path):
    """A tiny model on disk, and what is in it."""
    architecture = Architecture.of(tiny_config())
    params = architecture.init(0)
    return save_model(tmp_path / "model", architecture, params), architecture, params


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_model_comes_back_bit_for_bit(family, tied, dtype, tmp_path):
    architecture = Architecture.of(tiny_config(family, tie_embeddings=tied))
    params = {n: x.astype(dtype) for n, x in architecture.init(4).items()}
    save_model(tmp_path / "model", architecture, params)
    again, loaded = load_model(tmp_path / "model")
    assert again.config == architecture.config
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], value)


def test_a_type_may_be_asked_for(saved):
    folder, _, params = saved
    _, loaded = load_model(folder, dtype="bfloat16")
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value.astype(jnp.bfloat16))


@pytest.mark.parametrize("sizes", [(1, 8), (2, 4), (8, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_loading_onto_a_mesh_gives_the_same_values_where_the_table_wants_them(
    family, sizes, tmp_path
):
    architecture = Architecture.of(tiny_config(family, tie_embeddings=False))
    params = architecture.init(0)
    save_model(tmp_path / "model", architecture, params, shard_bytes=40_000)
    mesh = make_mesh(*sizes)
    _, loaded = load_model(tmp_path / "model", shardings=functools.partial(shardings, mesh=mesh))
    wanted = shardings(params, mesh)
    assert any(not x.is_fully_replicated for x in wanted.values())
    for name, value in params.items():
        assert loaded[name].sharding.is_equivalent_to(wanted[name], value.ndim), name
        np.testing.assert_array_equal(loaded[name], value)


def test_large_models_are_cut_into_files_with_an_index(tmp_path):
    architecture = Architecture.of(tiny_config())
    params = architecture.init(0)
    save_model(tmp_path / "model", architecture, params, shard_bytes=40_000)
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for name in files:
        with safe_open(tmp_path / "model" / name, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = [np.prod(file.get_slice(x).get_shape()) * 4 for x in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 40_000 or len(sizes) == 1
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in params.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("demo", [True, False])
def test_config_json_describes_the_same_model(family, demo):
    config = family_of(family).demo(300, 7) if demo else tiny_config(family)
    raw = json.loads(json.dumps(to_hub_config(config, dtype="float32", ids={})))
    assert from_hub_config(raw, "here") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "type 'llama'"),
        ({"model_type": "qwen4_vl"}, "supported are qwen2_vl, qwen2_5_vl"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"head_dim": 16}, "head_dim"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"vision_config": None}, "no hidden_size|no out_hidden_size"),
    ],
)
def test_configs_that_are_not_supported(change, message):
    raw = to_hub_config(tiny_config(), dtype="float32", ids={})
    with pytest.raises(RunError, match=message) as error:
        from_hub_config(raw | change, "config.json")
    assert "config.json" in str(error.value)


def test_every_tensor_that_does_not_fit_is_named_at_once(saved):
    folder, _, _ = saved

    def change(tensors):
        tensors.pop("model.norm.weight")
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][1:]
        tensors["surplus"] = np.zeros(1, np.float32)

    rewrite(folder, change)
    with pytest.raises(RunError) as error:
        load_model(folder)
    for words in (
        "missing model.norm.weight",
        "missing model.layers.1.mlp.up_proj.weight",
        "extra surplus",
        "model.embed_tokens.weight has shape (319, 32) instead of (320, 32)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_stored_twice_must_be_the_table(saved, equal):
    folder, _, params = saved

    def change(tensors):
        head = tensors["model.embed_tokens.weight"].copy()
        head[3, 4] += not equal
        tensors["lm_head.weight"] = head

    rewrite(folder, change)
    if equal:
        np.testing.assert_array_equal(
            load_model(folder)[1]["model/embed_tokens"], params["model/embed_tokens"]
        )
    else:
        with pytest.raises(RunError, match=r"lm_head\.weight"):
            load_model(folder)


def test_stored_rotary_frequencies_are_passed_over(saved):
    folder, _, _ = saved
    rewrite(folder, lambda x: x.update({"visual.rotary_pos_emb.inv_freq": np.ones(4, np.float32)}))
    rewrite(
        folder,
        lambda x: x.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
        ),
    )
    load_model(folder)


def test_a_tensor_under_two_names_is_refused(saved):
    folder, _, _ = saved

    def change(tensors):
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"] + 1

    rewrite(folder, change)
    with pytest.raises(RunError, match=r"model\.norm\.weight"):
        load_model(folder)


def test_mixed_types_in_one_stack_are_refused(saved):
    folder, _, _ = saved

    def change(tensors):
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].astype(np.float16)

    rewrite(folder, change)
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    load_model(folder, dtype="float32")


def test_pickles_are_refused_with_a_remedy(saved):
    folder, _, _ = saved
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"pytorch_model\.bin.*safe_serialization"):
        load_model(folder)


def test_a_folder_without_weights_or_without_config(saved, tmp_path):
    folder, _, _ = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"neither model\.safetensors nor"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match=r"config\.json is missing"):
        load_model(folder)
    with pytest.raises(RunError, match=r"config\.json is missing"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ""])
def test_an_index_cannot_point_outside_its_folder(saved, name):
    folder, _, _ = saved
    shutil.copyfile(folder / "model.safetensors", folder.parent / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(RunError, match="outside its folder"):
        hub_files(folder)


def test_an_index_that_names_a_pickle_is_refused(saved):
    folder, _, _ = saved
    (folder / "x.bin").write_bytes(b"pickle")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "x.bin"}}))
    with pytest.raises(RunError, match="any code"):
        hub_files(folder)


def test_shards_that_are_missing_or_lack_a_tensor(tmp_path):
    architecture = Architecture.of(tiny_config())
    folder = save_model(tmp_path / "m", architecture, architecture.init(0), shard_bytes=40_000)
    first = sorted(folder.glob("*.safetensors"))[0]
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.unheard_of"] = first.name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(RunError, match=r"model\.unheard_of in model-00001"):
        load_model(folder)
    first.unlink()
    with pytest.raises(RunError, match=r"lacks model-00001.*download"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_an_error_that_names_it(saved, text):
    folder, _, _ = saved
    (folder / INDEX).write_text(text)
    with pytest.raises(RunError, match="index"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config_is_an_error_that_names_it(saved, text):
    folder, _, _ = saved
    (folder / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json"):
        load_model(folder)


def test_saving_over_a_folder_replaces_it_whole(saved):
    folder, architecture, _ = saved
    save_model(folder, architecture, architecture.init(1), shard_bytes=40_000)
    assert not (folder / "model.safetensors").exists()
    other = architecture.init(2)
    save_model(folder, architecture, other)
    assert not (folder / INDEX).exists()
    np.testing.assert_array_equal(
        load_model(folder)[1]["model/embed_tokens"], other["model/embed_tokens"]
    )


def test_nothing_is_left_on_the_device_but_the_parameters(saved):
    folder, _, _ = saved
    before = {id(x) for x in jax.live_arrays()}
    _, loaded = load_model(folder)
    new = [x for x in jax.live_arrays() if id(x) not in before]
    assert sum(x.nbytes for x in new) == sum(x.nbytes for x in loaded.values())
