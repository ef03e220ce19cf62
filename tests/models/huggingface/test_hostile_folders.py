"""Broken and hostile model folders: errors that name file and field, and no long waits."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.config import from_hub_config, to_hub_config
from afmrl_jax.models.huggingface.folder import load_model, read_architecture, save_model
from afmrl_jax.models.huggingface.read import hub_files
from afmrl_jax.models.huggingface.safetensors import stored_tensors
from afmrl_jax.testing import tiny_config

WHOLE = {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"}
TOWER = {"depth", "embed_dim", "num_heads", "patch_size", "spatial_merge_size", "hidden_size"}
ODD = [0, -1, 1.5, "2", [1], {}, True, 10**9]


@pytest.fixture(scope="module")
def configs():
    """A good config.json of each family."""
    families = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    return {x: to_hub_config(tiny_config(x), dtype="float32", ids={}) for x in families}


@pytest.fixture(scope="module")
def model():
    architecture = Architecture.of(tiny_config())
    return architecture, architecture.init(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    return save_model(tmp_path_factory.mktemp("saved") / "model", *model)


@pytest.fixture
def folder(tmp_path, saved):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(raw, field):
    begun = time.monotonic()
    with pytest.raises(RunError, match=rf"a/config\.json.*\b{field}\b") as error:
        from_hub_config(raw, "a/config.json")
    assert "download" in str(error.value)
    assert time.monotonic() - begun < 2


# F9, W7
@pytest.mark.parametrize("value", ODD)
def test_sizes_of_the_decoder(configs, value):
    for field in sorted(WHOLE | {"num_key_value_heads", "intermediate_size"}):
        refused(configs["qwen2_vl"] | {field: value}, field)


# F9, W7
@pytest.mark.parametrize("value", ODD)
def test_sizes_of_the_tower(configs, value):
    raw = configs["qwen2_vl"]
    for field in sorted(TOWER | {"temporal_patch_size", "in_channels"}):
        refused(raw | {"vision_config": raw["vision_config"] | {field: value}}, field)
    raw = configs["qwen2_5_vl"]
    for field in ("window_size", "out_hidden_size", "intermediate_size"):
        refused(raw | {"vision_config": raw["vision_config"] | {field: value}}, field)


# W7
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"rope_theta": 0}}, "rope_theta"),
        ({"rope_scaling": {"mrope_section": [1]}}, "mrope_section"),
        ({"rope_scaling": {"mrope_section": 7}}, "mrope_section"),
        ({"rope_scaling": {"mrope_section": [-2, 4, 2]}}, "mrope_section"),
        ({"image_token_id": -1}, "image_token_id"),
        ({"image_token_id": 320}, "image_token_id"),
        ({"image_token_id": "5"}, "image_token_id"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"text_config": 7}, "text_config"),
        ({"vision_config": [7]}, "vision_config"),
    ],
)
def test_fields_that_make_no_sense(configs, change, field):
    refused(configs["qwen2_vl"] | change, field)


# W7
@pytest.mark.parametrize("blocks", [[99], [-1], [0, 2], ["0"], 7, [1.5]])
def test_blocks_of_full_attention_lie_in_the_tower(configs, blocks):
    raw = configs["qwen2_5_vl"]
    tower = raw["vision_config"] | {"fullatt_block_indexes": blocks}
    refused(raw | {"vision_config": tower}, "fullatt_block_indexes")


@pytest.mark.parametrize("name", [None, 7, ["qwen2_vl"], {"a": 1}, "x" * 10**6])
def test_odd_model_types(configs, name):
    with pytest.raises(RunError, match=r"a/config\.json.*supported are") as error:
        from_hub_config(configs["qwen2_vl"] | {"model_type": name}, "a/config.json")
    assert len(str(error.value)) < 300


def test_a_window_that_no_patch_fits(folder):
    config = to_hub_config(tiny_config("qwen2_5_vl"), dtype="float32", ids={})
    config["vision_config"]["window_size"] = 33
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"config\.json: window_size must be a multiple"):
        read_architecture(folder)


# F9
@pytest.mark.parametrize("layers", [1000, 10**6, 10**9])
def test_absurd_depths_end_at_once(folder, layers):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": layers}))
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"config\.json"):
        load_model(folder)
    assert time.monotonic() - begun < 10


# F2
@pytest.mark.parametrize("text", [b"", b"\xac", b"[" * 10**5, b'{"a": ' + b"9" * 5000 + b"}"])
def test_no_advice_to_delete_and_run_again_for_what_was_downloaded(folder, text):
    for name in ("config.json", "model.safetensors.index.json"):
        (folder / name).write_bytes(text)
        with pytest.raises(RunError, match=rf"{name}.*download the model again"):
            read_architecture(folder) if name == "config.json" else hub_files(folder)


@pytest.mark.parametrize("name", ["a\0b", "a\nb.safetensors", ".", "..", "a\\b"])
def test_odd_names_in_an_index(folder, name):
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="outside its folder") as error:
        hub_files(folder)
    assert str(error.value).isprintable()


def test_an_index_of_many_lost_tensors_gives_a_short_error(folder):
    lost = {"weight_map": {f"t{n}": "model.safetensors" for n in range(10**5)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(lost))
    with pytest.raises(RunError, match="and 99980 more") as error:
        hub_files(folder)
    assert len(str(error.value)) < 2000


def with_header(path, header):
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


# W7
def test_a_tensor_twice_in_a_header(tmp_path):
    one = '{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = f'{{"a": {one % (0, 4)}, "a": {one % (4, 8)}, "b": {one % (0, 4)}}}'
    with pytest.raises(RunError, match=r"x\.safetensors.*('a' stands twice|cannot be read)"):
        stored_tensors(with_header(tmp_path / "x.safetensors", header.encode()))
    header = f'{{"b": {one % (0, 4)}, "a": {one % (0, 4)}, "a": {one % (4, 8)}}}'
    with pytest.raises(RunError, match=r"x\.safetensors.*'a' stands twice.*again"):
        stored_tensors(with_header(tmp_path / "x.safetensors", header.encode()))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9])
def test_headers_longer_than_any_file(tmp_path, length):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(RunError, match=r"x\.safetensors cannot be read"):
        stored_tensors(tmp_path / "x.safetensors")


# F17
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(RunError, match=r"x\.safetensors is a pipe"):
        stored_tensors(tmp_path / "x.safetensors")


# S8
def test_any_changed_bit_of_the_weights_is_found(folder, rng):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for place in [*rng.integers(8, len(good), 10), 8, len(good) - 1]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises(RunError, match=r"model"):
            load_model(folder)
    path.write_bytes(good)
    load_model(folder)


# S8
@pytest.mark.parametrize("text", ["", "[]", '{"model.safetensors": 7}', "{}", '{"../x": "y"}'])
def test_a_broken_manifest_is_no_switch(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json.*copy the folder again"):
        load_model(folder)


def test_weights_that_the_manifest_does_not_know(folder):
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"do not agree on 'more\.safetensors'"):
        load_model(folder)


def test_a_folder_of_other_people_needs_no_manifest(folder, model):
    (folder / "manifest.json").unlink()
    for name, value in load_model(folder)[1].items():
        np.testing.assert_array_equal(value, model[1][name])
