"""A family of a model is one record: a made-up one, which stands in this file alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afmrl_jax.config import ImageConfig, InputDropout, TextBudget
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching import chunk_shapes
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.families import FAMILIES, ROLES, Family, family, register
from afmrl_jax.models.generation import generate
from afmrl_jax.models.huggingface.folder import load_model, save_model
from afmrl_jax.models.qwen_vl.hub_config import read_config, read_qwen2_vision, write_config
from afmrl_jax.models.qwen_vl.layers import Linear, RMSNorm
from afmrl_jax.models.qwen_vl.model import QwenVL
from afmrl_jax.models.qwen_vl.tower_parts import VisionStyle
from afmrl_jax.performance.flops import vision_flops
from afmrl_jax.testing import tiny_config, tiny_demo
from afmrl_jax.training.encode_batch import encode_batch


class TwoArrays(QwenVL):
    """A tower that gives two arrays a picture, and a decoder that reads both."""

    def visual(self, patches, segment, position, normalization=None):
        found = super().visual(patches, segment, position, normalization)
        return found._replace(deep=(jnp.tanh(found.tokens[..., ::-1]),))

    def embed(self, tokens, visual=None, visual_start=None, *, shares=1):
        if visual is not None:
            visual = visual._replace(tokens=visual.tokens + visual.deep[0])
        return super().embed(tokens, visual, visual_start, shares=shares)


class ReluMlp(nnx.Module):
    """An MLP that no published family has."""

    def __init__(self, config, adapters, keys):
        wide, inner = config.embed_dim, config.intermediate
        self.fc1 = Linear(wide, inner, bias=False, adapter=adapters("fc1"), keys=keys)
        self.fc2 = Linear(inner, wide, bias=False, adapter=adapters("fc2"), keys=keys)

    def __call__(self, x):
        return self.fc2(jax.nn.relu(self.fc1(x)))


STYLE = VisionStyle(norm=RMSNorm, mlp=ReluMlp, gated=False, windows=False)


def write_vision(vision):
    ratio = vision.intermediate // vision.embed_dim
    return {"embed_dim": vision.embed_dim, "hidden_size": vision.out_dim, "mlp_ratio": ratio}


TOY = Family(
    processors=FAMILIES["qwen2_vl"].processors,
    name="toy_vl",
    build=partial(QwenVL, style=STYLE),
    vision=STYLE,
    read_config=partial(read_config, "toy_vl", read_qwen2_vision),
    write_config=partial(write_config, "ToyForConditionalGeneration", write_vision),
    demo=tiny_demo("toy_vl"),
)


@pytest.fixture
def toy():
    register(TOY)
    yield TOY
    del FAMILIES[TOY.name]


@pytest.fixture(params=[QwenVL, TwoArrays], ids=["one array", "two arrays"])
def model(request, toy, tokenizer, monkeypatch):
    new = dataclasses.replace(toy, build=partial(request.param, style=STYLE))
    monkeypatch.setitem(FAMILIES, toy.name, new)
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    config = tiny_config(toy.name, **ids)
    # Where there are no windows, any size that the patches divide says so.
    vision = dataclasses.replace(config.vision, window_size=2 * 8 * 2)
    architecture = Architecture.of(dataclasses.replace(config, vision=vision))
    return architecture, architecture.init(0)


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


def test_a_new_family_is_built_with_its_own_parts(model):
    architecture, params = model
    assert "visual_tower/blocks/mlp/fc1/kernel" in params
    assert "visual_tower/blocks/mlp/fc1/bias" not in params
    twin = dataclasses.replace(architecture.config, family="qwen2_vl")
    assert vision_flops(architecture.config, [64]) == vision_flops(twin, [64])


def test_a_new_family_learns_as_an_embedder(model, builder):
    architecture, params = model
    batch = builder.batch([builder.embedder(i, None) for i in (0, 1, 8, 9)])

    def loss(params):
        vectors = embed_batch(architecture.bind(params), batch)
        scores = vectors[::2] @ vectors[1::2].T / 0.1
        return -jnp.mean(jnp.diag(jax.nn.log_softmax(scores)))

    step = jax.jit(jax.value_and_grad(loss))
    before, gradient = step(params)
    assert float(jnp.max(jnp.abs(gradient["visual_tower/blocks/mlp/fc1/kernel"]))) > 0
    after, _ = step({n: x - 0.01 * gradient[n] for n, x in params.items()})
    assert float(after) < float(before)


def contrastive(builder, **options):
    texts = {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}
    return ContrastiveSource(
        builder,
        steps=1,
        batch_size=4,
        sibling_share=0.5,
        seed=0,
        attributes_in_input=Lists(texts),
        attributes_for_terms=texts,
        vocabulary=Bm25Vocabulary.fit(list(texts.values())),
        dropout=InputDropout(),
        **options,
    )[0]


@pytest.mark.parametrize("model", [TwoArrays], indirect=True)
def test_chunks_carry_all_that_its_tower_gives(model, builder, monkeypatch):
    # Every shape is a program within the program.
    monkeypatch.setattr(chunk_shapes, "MOST_SHAPES", 1)
    architecture, params = model

    def total(params, batch):
        vectors, _ = encode_batch(architecture, {}, params, batch, prefix=False)
        return jnp.sum(vectors @ jnp.linspace(0.5, 1.0, vectors.shape[1])), vectors

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, expected), expected_gradient = both(params, contrastive(builder))
    (_, found), gradient = both(params, contrastive(builder, chunk_tokens=300, shares=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for name, value in expected_gradient.items():
        np.testing.assert_allclose(gradient[name], value, atol=1e-4, err_msg=name)


def test_a_new_family_writes_as_a_generator(model, builder, tokenizer):
    architecture, params = model
    write = partial(
        generate,
        group_size=2,
        max_new_tokens=3,
        temperature=1.0,
        key=jax.random.key(0),
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    prompts = builder.batch([builder.prompt(i) for i in (0, 1)])
    written = jax.jit(lambda params: write(architecture.bind(params), prompts))(params)
    assert written.tokens.shape == (2, 2, 3)
    assert np.isfinite(written.logprobs).all()


def test_a_new_family_is_read_as_it_was_written(model, tokenizer, tmp_path):
    architecture, params = model
    folder = save_model(tmp_path / "toy", architecture, params, tokenizer=tokenizer)
    again, found = load_model(folder)
    assert again.config == architecture.config
    for name, value in params.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_name_belongs_to_one_family(toy):
    register(toy)
    with pytest.raises(ConfigError, match="toy_vl"):
        register(dataclasses.replace(toy, build=FAMILIES["qwen2_vl"].build))


def test_an_unknown_family_is_told_what_there_is():
    with pytest.raises(ConfigError, match="qwen2_vl, qwen2_5_vl"):
        family("llama")
    assert set(ROLES.values()) <= set(FAMILIES)
