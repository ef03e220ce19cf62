"""An embedding depends on its row alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afmrl_jax.config import TextBudget
from afmrl_jax.models import embedder
from afmrl_jax.models.embedder import hidden_at, unit

# Compiled as stages do; operation by operation takes a compilation for each.
embed_batch = nnx.jit(embedder.embed_batch)
forward = nnx.jit(lambda model, batch: model(batch))


def device(batch):
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture
def rows(builder):
    return [
        builder.embedder(0, "shape: circle"),
        builder.embedder(3, None),
        builder.embedder(5, None, picture=False),
        builder.embedder(9, None, title=False),
    ]


def test_vectors_have_unit_length(model, builder, rows):
    vectors = embed_batch(model, device(builder.batch(rows)))
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_row_alone_in_another_bucket_has_the_same_vector(model, builder, rows):
    together = embed_batch(model, device(builder.batch(rows, 48)))
    for number, row in enumerate(rows):
        alone = embed_batch(model, device(builder.batch([row], 80)))
        np.testing.assert_allclose(alone[0], together[number], atol=1e-5)


@pytest.mark.parametrize("layout", ["bare", "chat"])
def test_a_row_with_attributes_holds_the_vector_of_the_row_without(model, builder, layout):
    indices, length = [0, 3, 5], {"bare": 48, "chat": 256}[layout]
    builder = dataclasses.replace(builder, text=TextBudget(layout=layout))
    told = [builder.embedder(i, "shape: circle; finish: matt") for i in indices]
    bare = [builder.embedder(i, None) for i in indices]
    ends = jnp.asarray([len(row.tokens) - 1 for row in bare])
    assert [row.bare_last for row in (*told, *bare)] == 2 * ends.tolist()
    prefix = unit(hidden_at(forward(model, device(builder.batch(told, length))), ends))
    expected = embed_batch(model, device(builder.batch(bare, length)))
    np.testing.assert_allclose(prefix, expected, atol=1e-5)


def test_text_alone_needs_no_vision_tower(model, builder):
    rows = [builder.embedder(i, text, picture=False) for i, text in ((0, None), (5, "a: b"))]
    with_tower = embed_batch(model, device(builder.batch(rows, 48)))
    without = embed_batch(model, device(builder.batch(rows, 48, with_patches=False)))
    np.testing.assert_allclose(without, with_tower, atol=1e-5)


def test_visual_tokens_computed_before_give_the_same_vector(model, builder, rows):
    batch = device(builder.batch(rows))

    # One program, so that both round alike.
    @nnx.jit
    def both(model, batch):
        tokens = model.visual_of(batch)
        return embedder.embed_batch(model, batch, tokens), embedder.embed_batch(model, batch)

    found, expected = both(model, batch)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_picture_and_words_both_matter(model, builder):
    full = builder.embedder(0, None)
    other_picture = type(full)(full.tokens, (builder.pictures.at(20, 0),))
    words = builder.embedder(0, None, picture=False)
    vectors = embed_batch(model, device(builder.batch([full, other_picture, words], 48)))
    assert float(jnp.abs(vectors[0] - vectors[1]).max()) > 1e-3
    assert float(jnp.abs(vectors[0] - vectors[2]).max()) > 1e-3
