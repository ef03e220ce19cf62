"""The cache of visual tokens: the same training without the tower, and safe on disk."""

import dataclasses
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import (
    AgclConfig,
    Execution,
    ImageConfig,
    InputDropout,
    LoraConfig,
    MeshConfig,
    ModelSettings,
    RunConfig,
    TextBudget,
)
from afmrl_jax.data.batching import chunk_shapes
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.testing import tiny_config
from afmrl_jax.training import vision_cache
from afmrl_jax.training.agcl import train_agcl
from afmrl_jax.training.partition import Partition

NO_ERASING = InputDropout(patches=0.0)
FROZEN = ModelSettings(trained="decoder", frozen_dtype="float32")
ON_TOWER = LoraConfig(rank=2, alpha=4.0, tower_targets=("attn.qkv",))


@pytest.fixture
def builder(badge_listings, tokenizer):
    text = TextBudget(buckets=(32,), max_title_tokens=8)
    return RowBuilder.of(badge_listings[:40], tokenizer, ImageConfig(), text)


@pytest.fixture(params=["qwen3_vl"])
def embedder(request, tokenizer):
    """Of the family whose tower gives several arrays a picture, where a test asks for no other."""
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config(request.param, **ids), Execution(scan=True))
    return architecture, architecture.init(0)


@pytest.fixture
def towers(monkeypatch):
    """Pictures that each fill of a cache computes."""
    seen, fill = [], vision_cache._fill

    def counted(cache, missing, *rest):
        seen.append(len(missing))
        fill(cache, missing, *rest)

    monkeypatch.setattr(vision_cache, "_fill", counted)
    return seen


def cached(builder, embedder, folder):
    return vision_cache.with_cached_tokens(builder, *embedder, folder, make_mesh(1, 1))


def tokens_of(builder):
    pictures = [builder.pictures.at(i, 0) for i in range(len(builder.listings))]
    # Not the mapped file itself, which some tests damage.
    return [x._replace(tokens=np.array(x.tokens)) for x in pictures]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.grid == b.grid
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.parametrize("embedder", ["qwen2_vl", "qwen3_vl"], indirect=True)
def test_tokens_are_the_towers_and_are_computed_once(builder, embedder, towers, tmp_path):
    architecture, params = embedder
    first = cached(builder, embedder, tmp_path)
    again = cached(builder, embedder, tmp_path)
    assert towers == [40]
    assert_same(tokens_of(again), tokens_of(first))
    assert_same(tokens_of(pickle.loads(pickle.dumps(again))), tokens_of(first))
    rows = [builder.embedder(i, None) for i in range(8)]
    batch = builder.batch(rows)
    expected = architecture.bind(params)(batch)
    found = architecture.bind(params)(again.batch([again.embedder(i, None) for i in range(8)]))
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_every_picture_of_a_listing_is_cached(
    badge_listings, tokenizer, embedder, towers, tmp_path
):
    architecture, params = embedder
    own, others = badge_listings[:6], badge_listings[6:12]
    # The last has only one, and some are in two listings.
    listings = [
        dataclasses.replace(x, more_images=(y.image, own[0].image))
        for x, y in zip(own[:5], others, strict=False)
    ] + [own[5]]
    text, image = TextBudget(buckets=(96,), max_title_tokens=8), ImageConfig(max_pictures=3)
    builder = RowBuilder.of(listings, tokenizer, image, text)
    again = cached(builder, embedder, tmp_path)
    assert towers == [11]
    rows, known = ([x.embedder(n, None) for n in range(6)] for x in (builder, again))
    assert [len(x.pictures) for x in rows] == [len(x.pictures) for x in known] == [3] * 5 + [1]
    model = architecture.bind(params)
    found, expected = model(again.batch(known)), model(builder.batch(rows))
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_another_tower_or_preprocessing_has_tokens_of_its_own(builder, embedder, towers, tmp_path):
    architecture, params = embedder
    cached(builder, embedder, tmp_path)
    other = {n: x + 0.01 if n.startswith("visual_tower/") else x for n, x in params.items()}
    cached(builder, (architecture, other), tmp_path)
    # Adapters and decoder do not matter.
    decoder = {n: x if n.startswith("visual_tower/") else x + 0.01 for n, x in params.items()}
    cached(builder, (architecture, decoder), tmp_path)
    smaller = RowBuilder.of(
        builder.listings, builder.tokenizer, ImageConfig(max_pixels=48 * 48), builder.text
    )
    cached(smaller, embedder, tmp_path)
    assert towers == [40, 40, 40]


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_a_damaged_shard_is_computed_again(
    builder, embedder, towers, tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(vision_cache, "PICTURES", 16)
    monkeypatch.setattr(vision_cache, "SHARD_BYTES", 1)
    expected = tokens_of(cached(builder, embedder, tmp_path))
    shards = sorted(tmp_path.glob("*/*.tokens"))
    assert len(shards) == 3
    broken = shards[1]
    if damage == "cut":
        broken.write_bytes(broken.read_bytes()[:-5])
    elif damage == "gone":
        broken.unlink()
    else:
        broken.with_suffix(".json").write_text('{"tokens": 12, "pla')
    with pytest.warns(UserWarning, match="computed again"):
        found = cached(builder, embedder, tmp_path)
    assert towers[0] == 40
    assert towers[1] in (8, 16)
    for a, b in zip(tokens_of(found), expected, strict=True):
        np.testing.assert_allclose(a.tokens, b.tokens, atol=3e-6)
    # Mended for good: the broken shard is gone.
    assert_same(tokens_of(cached(builder, embedder, tmp_path)), tokens_of(found))


def test_a_shard_without_a_manifest_is_none(builder, embedder, towers, tmp_path):
    cached(builder, embedder, tmp_path)
    (manifest,) = tmp_path.glob("*/*.json")
    manifest.unlink()
    cached(builder, embedder, tmp_path)
    assert towers == [40, 40]


def test_two_at_once_share_the_work(builder, embedder, towers, tmp_path):
    found = [None, None]

    def fill(number):
        found[number] = tokens_of(cached(builder, embedder, tmp_path))

    threads = [threading.Thread(target=fill, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert towers == [40]
    assert_same(*found)


@pytest.mark.parametrize(
    ("embedder", "chunk_tokens"), [("qwen2_vl", None), ("qwen3_vl", 128)], indirect=["embedder"]
)
def test_training_is_the_same_with_the_cache(
    builder, embedder, towers, tmp_path, monkeypatch, chunk_tokens
):
    # Every shape is a program within the program, and compiling takes nearly all the time.
    monkeypatch.setattr(chunk_shapes, "MOST_SHAPES", 2)
    settings = AgclConfig(
        steps=3, batch_size=6, gamma=0.0, dropout=NO_ERASING, chunk_tokens=chunk_tokens
    )
    run = RunConfig(embedder=FROZEN, agcl=settings, mesh=MeshConfig(data=1))
    losses = []
    for cache in (None, str(tmp_path / "cache")):
        config = dataclasses.replace(run, visual_cache=cache)
        architecture, params = embedder
        # The step donates what it is given.
        params = jax.tree.map(jnp.copy, params)
        trainee = Partition.of(architecture, params, FROZEN, make_mesh(1, 1))
        folder = tmp_path / str(cache is None)
        train_agcl(config, settings, "agcl", folder, trainee, builder, seed=0)
        lines = read_metrics(folder / "metrics.jsonl")
        losses.append(lines[-1]["loss"])
        assert 0 <= lines[-1]["text_padding"] < 1
        assert ("patch_padding" in lines[-1]) == (cache is None)
    assert towers == [40]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedder": ModelSettings()}, r"set --embedder\.trained to lora or decoder"),
        (
            {"embedder": ModelSettings(trained="lora", lora=ON_TOWER)},
            r"embedder\.lora\.tower_targets .*train in it",
        ),
        ({"agcl": AgclConfig()}, r"set --agcl\.dropout\.patches 0"),
    ],
)
def test_a_cache_that_cannot_serve_is_refused(change, message):
    good = {"embedder": FROZEN, "agcl": AgclConfig(dropout=NO_ERASING), "visual_cache": "cache"}
    assert RunConfig(**good).visual_cache == "cache"
    with pytest.raises(ConfigError, match=message):
        RunConfig(**(good | change))


def test_a_cache_is_refused_where_a_folders_adapters_train_in_the_tower(
    builder, embedder, tmp_path
):
    architecture = with_lora(embedder[0], ON_TOWER)
    params = add_lora(architecture, embedder[1], 0)
    settings = AgclConfig(steps=1, batch_size=6, gamma=0.0, dropout=NO_ERASING)
    # The settings do not say what the folder holds.
    model = ModelSettings(weights="folder", trained="lora", frozen_dtype="float32")
    run = RunConfig(
        embedder=model, agcl=settings, mesh=MeshConfig(data=1), visual_cache=str(tmp_path)
    )
    trainee = Partition.of(architecture, params, model, make_mesh(1, 1))
    with pytest.raises(ConfigError, match="adapters of folder train in it"):
        train_agcl(run, settings, "agcl", tmp_path / "stage", trainee, builder, seed=0)


def test_a_tower_with_other_adapters_has_another_cache(embedder):
    """Also where only their scale is another: it is no weight."""
    plain, params = embedder
    architecture = with_lora(plain, ON_TOWER)
    other = with_lora(plain, dataclasses.replace(ON_TOWER, alpha=8.0))
    params = add_lora(architecture, params, 0)
    keys = [vision_cache.tower_key(x, params, ImageConfig()) for x in (architecture, other)]
    bare = vision_cache.tower_key(plain, embedder[1], ImageConfig())
    assert len({*keys, bare}) == 3
