"""A run whose files are not those that it wrote is not used to search or to write."""

import shutil
from pathlib import Path

import pytest

from afmrl_jax.config import RunConfig, to_dict
from afmrl_jax.errors import RunError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import finish_stage, tiny_config
from afmrl_jax.training.model_store import WEIGHTS, ModelStore


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer):
    """A run as far as its tokenizer and two embedders are concerned."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(catalogue="x")
    write_json(folder / "config.json", to_dict(config))
    tokenizer.save(folder / "tokenizer")
    finish_stage(folder / "tokenizer", "tokenizer.json")
    sizes = tiny_config(vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id)
    architecture = Architecture.of(sizes)
    store = ModelStore(folder, config, make_mesh(1, 1))
    for seed, stage in enumerate(("infonce", "agcl")):
        store.save(stage, architecture, architecture.init(seed), tokenizer)
        finish_stage(folder / stage, WEIGHTS)
    return folder


@pytest.fixture
def run(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "run"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_whole_run_is_read(run):
    found = FinishedRun(run)
    assert (
        found.tokenizers["embedder"].vocab_size == found.model("infonce")[0].config.text.vocab_size
    )


# S8
@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_changed_weights_and_a_changed_manifest(run, name):
    path = run / "infonce" / "model" / name
    flip(path, len(path.read_bytes()) // 2)
    with pytest.raises(RunError, match=rf"{name} has changed since it was written"):
        FinishedRun(run).model("infonce")


# S8
def test_another_models_weights_with_their_own_manifest(run):
    shutil.rmtree(run / "infonce" / "model")
    shutil.copytree(run / "agcl" / "model", run / "infonce" / "model")
    with pytest.raises(RunError, match=r"infonce/model/manifest\.json has changed"):
        FinishedRun(run).model("infonce")


# S8
def test_a_lost_manifest_is_no_switch(run):
    (run / "infonce" / "model" / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"manifest\.json is missing; .*delete .*infonce"):
        FinishedRun(run).model("infonce")


# S8
@pytest.mark.parametrize("text", ["", "{}", "7", "rubbish"])
def test_a_broken_record(run, text):
    (run / "infonce" / "DONE.json").write_text(text)
    with pytest.raises(RunError, match=r"DONE\.json.*delete .*infonce"):
        FinishedRun(run).model("infonce")


# S8
def test_a_changed_tokenizer(run):
    path = run / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(RunError, match=r"tokenizer\.json has changed since"):
        _ = FinishedRun(run).tokenizers
