"""A run from pretrained folders: adapters on R, the decoder of G, and everything handed back."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest

from afmrl_jax.config import Execution, LoraConfig, ModelSettings, RunConfig, TextBudget
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import base_folder, load_model, save_model
from afmrl_jax.models.huggingface.peft import is_peft_folder
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runs.export import export
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.model_store import ModelStore

# Models with random weights are tiny too.
pytestmark = pytest.mark.usefixtures("tiny_models")
CHAT = TextBudget(buckets=(128, 192), max_attribute_tokens=16, layout="chat")


def write_folders(root, tokenizer, *, tied=True, dtype="float32"):
    for seed, family in enumerate(("qwen2_vl", "qwen2_5_vl", "qwen3_vl")):
        config = tiny_config(
            family,
            vocab_size=tokenizer.vocab_size + 3,
            image_token_id=tokenizer.image_pad_id,
            tie_embeddings=tied,
        )
        architecture = Architecture.of(config)
        params = {n: x.astype(dtype) for n, x in architecture.init(seed).items()}
        save_model(root / family, architecture, params, tokenizer=tokenizer)
        # A hub's folder has none.
        (root / family / "manifest.json").unlink()
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Folders of a small R and a small G, as a hub would have them."""
    return write_folders(tmp_path_factory.mktemp("hub"), tokenizer)


@pytest.fixture(scope="module")
def finished(tiny_run, folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    Pipeline(folder, pretrained_run(tiny_run, folders)).execute()
    return folder


def pretrained_run(tiny_run, folders):
    """Settings of a run from folders: adapters on R, the decoder of G."""
    return dataclasses.replace(
        tiny_run,
        text=CHAT,
        embedder=ModelSettings(
            weights=str(folders / "qwen2_vl"),
            trained="lora",
            lora=LoraConfig(rank=2, alpha=4.0),
            frozen_dtype="float32",
            execution=Execution(remat="full"),
        ),
        generator=ModelSettings(weights=str(folders / "qwen2_5_vl"), trained="decoder"),
        backbone=dataclasses.replace(tiny_run.backbone, steps=0),
        distill=dataclasses.replace(
            tiny_run.distill, steps=2, swap_share=0.0, contrastive_weight=0.0
        ),
        agcl=dataclasses.replace(tiny_run.agcl, steps=2),
        rar=dataclasses.replace(tiny_run.rar, steps=1),
        cit=dataclasses.replace(tiny_run.cit, steps=1),
    )


def test_every_row_is_evaluated(finished):
    rows = read_json(finished / "evaluation.json")["rows"]
    assert [x["name"] for x in rows] == ["infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit"]


def test_the_tokenizer_is_the_pretrained_one(finished, folders):
    ours = BpeTokenizer.load(finished / "tokenizer")
    assert ours.encode("a red badge") == BpeTokenizer.load(folders / "qwen2_vl").encode(
        "a red badge"
    )


@pytest.mark.parametrize("stage", ["infonce", "agcl-distilled", "cit-1"])
def test_r_is_an_adapter_of_untouched_weights(finished, folders, stage):
    assert is_peft_folder(finished / stage / "model")
    architecture, params = load_model(finished / stage / "model")
    assert architecture.config.lora == LoraConfig(rank=2, alpha=4.0)
    _, base = load_model(folders / "qwen2_vl")
    for name, value in base.items():
        np.testing.assert_array_equal(params[name], value)
    learned = [float(np.abs(x).max()) for n, x in params.items() if n.endswith("lora_b")]
    assert min(learned) > 0


def exported_infonce(config, folder):
    """A run up to its first embedder, and that as a folder `r` for torch, within 1e-4 of it."""
    pytest.importorskip("torch", reason="the check needs `pip install torch`")
    pipeline = Pipeline(folder / "run", config)
    with closing(pipeline.run):
        for stage in ("tokenizer", "infonce"):
            pipeline.stages()[stage]()
    agreement = export(FinishedRun(folder / "run"), "infonce", folder / "r")
    assert agreement is not None
    assert agreement.difference < 1e-4


@pytest.mark.parity
def test_r_is_exported_with_its_adapters_merged(tiny_run, folders, tmp_path):
    exported_infonce(pretrained_run(tiny_run, folders), tmp_path)
    _, trained = load_model(tmp_path / "run" / "infonce" / "model")
    _, merged = load_model(tmp_path / "r")
    name = "model/layers/self_attn/q_proj/kernel"
    change = (
        2 * trained[name.replace("kernel", "lora_a")] @ trained[name.replace("kernel", "lora_b")]
    )
    np.testing.assert_allclose(merged[name], trained[name] + change, atol=1e-6)
    assert float(np.abs(change).max()) > 0
    assert not is_peft_folder(tmp_path / "r")


def test_g_is_a_whole_model_with_the_pretrained_tower(finished, folders):
    _, before = load_model(folders / "qwen2_5_vl")
    _, after = load_model(finished / "rar" / "model")
    for name, value in after.items():
        same = np.array_equal(np.asarray(value, np.float32), before[name])
        if name.startswith("visual_tower"):
            # Frozen, and kept in bfloat16.
            np.testing.assert_allclose(np.asarray(value, np.float32), before[name], rtol=0.01)
        elif name.endswith("kernel"):
            assert not same, name


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "bfloat16")])
def test_a_run_from_other_heads_and_types(tied, dtype, tiny_run, tmp_path, tokenizer):
    folders = write_folders(tmp_path / "hub", tokenizer, tied=tied, dtype=dtype)
    run = tmp_path / "run"
    Pipeline(run, pretrained_run(tiny_run, folders)).execute()
    rows = read_json(run / "evaluation.json")["rows"]
    assert rows[-1]["name"] == "afmrl+cit"
    assert all(np.isfinite(x["fine"]["R@1"]) for x in rows)
    architecture, params = load_model(run / "rar" / "model")
    assert architecture.config.text.tie_embeddings == tied
    assert ("lm_head" in params) != tied
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in params.values())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_either_family_embeds_and_writes(family, tiny_run, folders, tmp_path, tokenizer):
    for settings in (ModelSettings(weights=str(folders / family)), ModelSettings(family=family)):
        config = dataclasses.replace(tiny_run, embedder=settings, generator=settings)
        store = ModelStore(tmp_path, config, make_mesh(1, 1))
        for stage in ("infonce", "distill"):
            assert store.start(stage, tokenizer)[0].config.family == family


def test_weights_of_another_family_than_was_asked_for_are_refused(
    tiny_run, folders, tmp_path, tokenizer
):
    settings = ModelSettings(weights=str(folders / "qwen2_5_vl"), family="qwen2_vl")
    store = ModelStore(tmp_path, dataclasses.replace(tiny_run, embedder=settings), make_mesh(1, 1))
    with pytest.raises(ConfigError, match="holds a qwen2_5_vl model and not a qwen2_vl"):
        store.start("infonce", tokenizer)


def test_adapters_need_weights(tiny_run, tmp_path, tokenizer):
    config = dataclasses.replace(tiny_run, embedder=RunConfig.pretrained().embedder)
    with pytest.raises(ConfigError, match=r"--embedder\.weights"):
        ModelStore(tmp_path, config, make_mesh(1, 1)).start("infonce", tokenizer)


def write_qwen3(folder, tokenizer, seed=0):
    ids = {"vocab_size": tokenizer.vocab_size + 3, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen3_vl", **ids))
    save_model(folder, architecture, architecture.init(seed), tokenizer=tokenizer)
    return folder


def qwen3_run(tiny_run, root, tokenizer):
    """Settings of a run with Qwen3-VL in both roles, and its folders of weights."""
    for seed, role in enumerate(("embedder", "generator")):
        write_qwen3(root / role, tokenizer, seed)
    return dataclasses.replace(
        pretrained_run(tiny_run, root),
        text=dataclasses.replace(CHAT, layout="qwen3"),
        embedder=ModelSettings(
            weights=str(root / "embedder"),
            trained="lora",
            lora=LoraConfig(rank=2, tower_targets=("attn.qkv",), rank_stabilized=True, dora=True),
        ),
        generator=ModelSettings(weights=str(root / "generator"), trained="decoder"),
    )


@pytest.mark.slow
def test_qwen3_goes_through_every_stage(tiny_run, tmp_path, tokenizer):
    third = tmp_path / "run"
    Pipeline(third, qwen3_run(tiny_run, tmp_path, tokenizer)).execute()
    names = [x["name"] for x in read_json(third / "evaluation.json")["rows"]]
    assert names == ["infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit"]
    for stage in ("distill", "rar"):
        assert read_json(third / stage / "model" / "config.json")["model_type"] == "qwen3_vl"
    assert is_peft_folder(third / "cit-1" / "model")
    architecture, params = load_model(third / "cit-1" / "model")
    lora = architecture.config.lora
    assert lora is not None
    assert (lora.dora, lora.rank_stabilized, lora.adapts_tower) == (True, True, True)
    _, base = load_model(base_folder(third / "cit-1" / "model"))
    for name in (x for x in params if x.endswith("lora_magnitude")):
        before = np.linalg.norm(base[name.replace("lora_magnitude", "kernel")], axis=-2)
        change = np.abs(params[name] / before - 1).max()
        assert 0 < change < 0.1, name


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_an_exported_qwen3_gives_the_same_vectors_in_torch(tiny_run, tmp_path, tokenizer):
    exported_infonce(qwen3_run(tiny_run, tmp_path, tokenizer), tmp_path)


def test_patches_of_another_size_are_refused_with_the_settings_that_fit(
    tiny_run, tmp_path, tokenizer
):
    folder = write_qwen3(tmp_path / "r", tokenizer)
    config = dataclasses.replace(
        tiny_run,
        image=dataclasses.replace(tiny_run.image, patch_size=16),
        embedder=ModelSettings(weights=str(folder)),
    )
    store = ModelStore(tmp_path, config, make_mesh(1, 1))
    with pytest.raises(ConfigError, match=r"--image\.patch-size 8"):
        store.start("infonce", tokenizer)
