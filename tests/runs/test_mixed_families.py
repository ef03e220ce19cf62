"""Old and new families in one run: patches, chats and tokens of each model's own."""

import dataclasses

import numpy as np
import pytest

from afmrl_jax.config import (
    ImageConfig,
    ListsConfig,
    LoraConfig,
    ModelSettings,
    Reads,
    RunConfig,
    TextBudget,
    pretrained_for,
)
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import load_model, save_model
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runs.export import export
from afmrl_jax.runs.pipeline import Pipeline
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.model_store import ModelStore

PATCHES = {"qwen2_5_vl": 14, "qwen3_vl": 16}
"""Sides of the published models' patches."""
CHAT = TextBudget(buckets=(128, 192), max_attribute_tokens=16)


def write_folder(folder, family, tokenizer, seed):
    """A tiny model with the patches of the published ones."""
    ids = {"vocab_size": tokenizer.vocab_size + 3, "image_token_id": tokenizer.image_pad_id}
    config = tiny_config(family, **ids)
    vision = dataclasses.replace(
        config.vision, patch_size=PATCHES[family], window_size=4 * PATCHES[family]
    )
    architecture = Architecture.of(dataclasses.replace(config, vision=vision))
    save_model(folder, architecture, architecture.init(seed), tokenizer=tokenizer)
    # A hub's folder has none.
    (folder / "manifest.json").unlink()
    return folder


def reading(family):
    """How the rows of a tiny model of a family are made."""
    preset, patch = pretrained_for(family), PATCHES[family]
    image = dataclasses.replace(
        preset.image, temporal_patch_size=1, min_pixels=4 * patch**2, max_pixels=16 * patch**2
    )
    text = dataclasses.replace(CHAT, layout=preset.text.layout)
    return image, text


def mixed_run(tiny_run, root, families, tokenizers):
    """Settings of a run whose models are of two families and have two tokenizers."""
    roles = ("embedder", "generator")
    folders = [
        write_folder(root / role, family, own, seed)
        for seed, (role, family, own) in enumerate(zip(roles, families, tokenizers, strict=True))
    ]
    first, second = map(reading, families)
    return dataclasses.replace(
        tiny_run,
        image=first[0],
        text=first[1],
        embedder=ModelSettings(
            weights=str(folders[0]),
            trained="lora",
            lora=LoraConfig(rank=2, alpha=4.0),
            frozen_dtype="float32",
        ),
        generator=ModelSettings(
            weights=str(folders[1]), trained="decoder", reads=Reads.between(second, first)
        ),
        lists=ListsConfig(grammar=True),
        backbone=dataclasses.replace(tiny_run.backbone, steps=0),
        distill=dataclasses.replace(
            tiny_run.distill, steps=2, swap_share=0.0, contrastive_weight=0.0
        ),
        agcl=dataclasses.replace(tiny_run.agcl, steps=2),
        rar=dataclasses.replace(tiny_run.rar, steps=2, refresh_gallery=1),
        cit=dataclasses.replace(tiny_run.cit, steps=1),
    )


@pytest.fixture
def tokenizers(tokenizer, badge_listings):
    other = BpeTokenizer.train([x.title for x in badge_listings[::2]], 300)
    assert other.encode("a red badge") != tokenizer.encode("a red badge")
    return tokenizer, other


@pytest.mark.slow
@pytest.mark.parametrize("families", [("qwen3_vl", "qwen2_5_vl"), ("qwen2_5_vl", "qwen3_vl")])
def test_old_and_new_go_through_every_stage(families, tiny_run, tmp_path, tokenizers):
    config, folder = mixed_run(tiny_run, tmp_path, families, tokenizers), tmp_path / "run"
    Pipeline(folder, config).execute()
    rows = read_json(folder / "evaluation.json")["rows"]
    assert [x["name"] for x in rows] == ["infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit"]
    assert all(np.isfinite(x["fine"]["R@1"]) for x in rows)
    for stage, family, own in zip(("cit-1", "rar"), families, tokenizers, strict=True):
        model = folder / stage / "model"
        architecture, params = load_model(model)
        assert architecture.config.family == family
        assert architecture.config.vision.patch_size == PATCHES[family]
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in params.values())
        if family == families[1]:
            assert BpeTokenizer.load(model).encode("a red badge") == own.encode("a red badge")
    # A second call finds everything finished.
    again = Pipeline(folder, config)
    again.execute()
    assert not again.run.did_something

    run = FinishedRun(folder)
    embedder = Embedder.load(folder)
    assert (embedder.image, embedder.text) == reading(families[0])
    assert (embedder.generator.image, embedder.generator.text) == reading(families[1])
    item = {"image": np.zeros((40, 60, 3), np.uint8), "text": "a red badge"}
    vectors, texts = embedder.encode_with_attributes([item])
    assert np.isfinite(vectors).all()
    given = embedder.encode([{**item, "attributes": texts[0]}] if texts[0] else [item])
    np.testing.assert_allclose(vectors, given, atol=1e-5)
    export(run, None, tmp_path / "exported", check=False)
    exported = Embedder.load(tmp_path / "exported")
    assert exported.image.patch_size == PATCHES[families[0]]
    np.testing.assert_allclose(exported.encode([item]), embedder.encode([item]), atol=1e-4)


def test_a_family_in_one_role_alone_is_told_by_its_reads(tiny_run, tmp_path, tokenizer):
    families = "qwen3_vl", "qwen2_5_vl"
    config = mixed_run(tiny_run, tmp_path, families, (tokenizer, tokenizer))
    assert config.image_of("embedder").patch_size == 16
    assert config.image_of("generator").patch_size == 14
    assert config.text_of("generator").layout == "chat"
    for stage, family in zip(("infonce", "distill"), families, strict=True):
        store = ModelStore(tmp_path, config, make_mesh(1, 1))
        assert store.start(stage, tokenizer)[0].config.family == family
    plain = dataclasses.replace(
        config, generator=dataclasses.replace(config.generator, reads=Reads())
    )
    wanted = r"--image\.patch-size 14, or --generator\.reads\.patch-size 14"
    with pytest.raises(ConfigError, match=wanted):
        ModelStore(tmp_path, plain, make_mesh(1, 1)).start("distill", tokenizer)


def test_presets_of_two_families():
    for first, second in (("qwen3_vl", "qwen2_vl"), ("qwen2_5_vl", "qwen3_vl")):
        config, other = pretrained_for(first, second), pretrained_for(second)
        assert config.image_of("embedder") == pretrained_for(first).image
        assert config.image_of("generator") == other.image
        assert config.text_of("generator").layout == other.text.layout
    assert pretrained_for(None, "qwen3_vl") == RunConfig.qwen3()
    assert pretrained_for(None) == RunConfig.pretrained()


def test_pictures_of_either_model_must_fit_the_rows():
    large = ModelSettings(reads=Reads(max_pixels=800 * 800))
    with pytest.raises(ConfigError, match=r"in rows of the generator, and text\.buckets end at"):
        RunConfig(generator=large, image=ImageConfig(max_pixels=64 * 64))
