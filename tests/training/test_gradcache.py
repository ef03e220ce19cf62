"""Chunked training steps: the gradient of the whole batch, the vision tower once, on any mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import AgclConfig, InputDropout, TextBudget
from afmrl_jax.data.chunks import Chunks, padding_counts
from afmrl_jax.data.pipeline import ContrastiveSource, RowBuilder
from afmrl_jax.data.terms import Bm25Vocabulary
from afmrl_jax.model_config import Execution, ImageConfig, LoraConfig
from afmrl_jax.models.functional import Architecture
from afmrl_jax.objectives.bm25 import fit_bm25
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.row_vectors import row_vectors
from afmrl_jax.training.state import initial_state
from afmrl_jax.training.trainee import learns

import optax

SGD = optax.sgd(1.0)
PAIRS = 16


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


def source(builder, *, dropout=InputDropout(), **options):
    texts = {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}
    return ContrastiveSource(
        builder,
        steps=4,
        batch_size=PAIRS,
        sibling_share=0.5,
        seed=0,
        attributes_in_input=texts,
        attributes_for_terms=texts,
        vocabulary=Bm25Vocabulary.fit(list(texts.values())),
        dropout=dropout,
        **options,
    )


def statistics(builder):
    texts = [f"shape: {x.product_id}" for x in builder.listings]
    vocabulary = Bm25Vocabulary.fit(texts)
    return fit_bm25(vocabulary.encode(texts, 32), vocabulary.size)


def model(tokenizer, trained, **execution):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    lora = LoraConfig(rank=4) if trained == "lora" else None
    architecture = Architecture.of(tiny_config(lora=lora, **ids), Execution(**execution))
    params = architecture.init(0)
    # Adapters start as nothing, and half their gradient is then nothing too.
    rng = np.random.default_rng(1)
    params = {
        n: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) if n.endswith("lora_b") else x
        for n, x in params.items()
    }
    trainable = {n: np.asarray(x) for n, x in params.items() if learns(n, trained)}
    frozen = {n: np.asarray(x) for n, x in params.items() if n not in trainable}
    return architecture, trainable, frozen


SETTINGS = AgclConfig(batch_size=PAIRS, gamma=0.3, delta=0.1, agreement_rho=0.9)


def gradients(step, trainable, frozen, batch, mesh):
    """Of one step, by plain descent at rate 1, and the loss."""
    with jax.set_mesh(mesh):
        state = place(initial_state(trainable, SGD), mesh)
        frozen = place(frozen, mesh)
        state, metrics = step(frozen, state, place_batch(batch, mesh), jax.random.key(0))
    found = {n: trainable[n] - np.asarray(x) for n, x in state["params"].items()}
    return found, float(metrics["loss"])


def distance(found, expected):
    """Of two gradients, relative to the length of the second."""
    def length(tree):
        return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in tree.values()))
    return length({n: found[n] - x for n, x in expected.items()}) / length(expected)


@pytest.mark.parametrize("trained", ["lora", "decoder", "all"])
def test_chunks_have_the_gradient_of_the_whole_batch(builder, tokenizer, trained):
    architecture, trainable, frozen = model(tokenizer, trained)
    step = make_agcl_step(architecture, SETTINGS, statistics(builder), SGD)
    whole = source(builder)[1]
    expected, loss = gradients(step, trainable, frozen, whole, make_mesh(1, 1))
    for sizes in ((1, 1), (8, 1), (4, 2)):
        chunked = source(builder, chunk_tokens=160 // sizes[0] + 40, shares=sizes[0])[1]
        assert sum(x.tokens.shape[0] for x in chunked["rows"].texts) >= 3
        found, chunked_loss = gradients(step, trainable, frozen, chunked, make_mesh(*sizes))
        print(trained, sizes, distance(found, expected), chunked_loss - loss)
        assert chunked_loss == pytest.approx(loss, rel=1e-6)
        assert distance(found, expected) < 1e-6
