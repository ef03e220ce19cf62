"""An embedding depends on its row alone: not on neighbours, padding, bucket or shared bins."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.collate import Row, collate
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.qwen_vl.pixels import normalized

SIZES = [(64, 64), (32, 32), (120, 30), (33, 60), (16, 16), (30, 110), (200, 200), (48, 32)]
CLOSE = {"rtol": 0, "atol": 1e-5}


def png(size, rng):
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def builder(tokenizer, rng):
    """Listings with pictures of many sizes and titles of many lengths."""
    words = ["red", "enamel", "badge", "of", "a", "round", "letter", "k"]
    listings = [
        Listing(str(n), str(n), " ".join(words[: n + 1]), png(size, rng))
        for n, size in enumerate(SIZES)
    ]
    image = ImageConfig(min_pixels=16 * 16, max_pictures=2)
    return RowBuilder.of(listings, tokenizer, image, TextBudget())


@pytest.fixture
def rows(builder):
    told = [builder.embedder(n, "shape: round" if n % 2 else None) for n in range(len(SIZES))]
    return [*told, builder.embedder(2, None, picture=False), builder.embedder(3, None, title=False)]


# One function for all tests, so that batches of one shape share a program.
embedded = nnx.jit(embed_batch)


@pytest.fixture
def embed(model):
    return lambda batch: np.asarray(embedded(model, jax.tree.map(jnp.asarray, batch)))


@pytest.fixture
def alone(embed, builder, rows):
    """Vectors of rows that were alone in their batch."""
    return np.concatenate([embed(builder.batch([row], 64)) for row in rows])


def test_neighbours_change_nothing(embed, builder, rows, alone):
    batch = builder.batch(rows, 64)
    assert len(batch.patches) < len(rows)
    assert batch.patch_segment.max() > 1, "no bin is shared"
    np.testing.assert_allclose(embed(batch), alone, **CLOSE)


def test_the_order_of_rows_changes_nothing(embed, builder, rows, alone, rng):
    for _ in range(3):
        order = rng.permutation(len(rows))
        found = embed(builder.batch([rows[i] for i in order], 64))
        np.testing.assert_allclose(found, alone[order], **CLOSE)


def test_padding_and_bucket_change_nothing(embed, builder, rows, alone):
    for length in (48, 112):
        for side in ("right", "left"):
            found = embed(builder.batch(rows, length, side=side))
            np.testing.assert_allclose(found, alone, **CLOSE, err_msg=f"{length} {side}")


@pytest.mark.parametrize("shares", [(1.0,), (0.2, 1.0)])
@pytest.mark.parametrize("room", [1, 4])
def test_bins_change_nothing(embed, builder, rows, alone, tokenizer, shares, room):
    """The same rows in many small bins, in few large ones, and with many empty ones."""
    config = ImageConfig(min_pixels=16 * 16, max_pictures=room, pack_shares=shares)
    batch = collate(rows, tokenizer, config, 64)
    assert len(batch.patches) in (2, 10)
    np.testing.assert_allclose(embed(batch), alone, **CLOSE)


def test_a_row_of_two_pictures_does_not_depend_on_its_bin(embed, builder, tokenizer):
    def pair(one, two):
        parts = [builder.embedder(n, None, title=False) for n in (one, two)]
        tokens = [token for part in parts for token in part.tokens]
        return Row(tokens, tuple(x for part in parts for x in part.pictures))

    rows = [pair(0, 1), pair(1, 0), pair(4, 7), builder.embedder(5, None)]
    alone = np.concatenate([embed(builder.batch([row], 48)) for row in rows])
    np.testing.assert_allclose(embed(builder.batch(rows, 48)), alone, **CLOSE)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3, "the order of pictures is no matter"


def test_visual_tokens_are_shared_by_the_rows_of_a_group(embed, model, builder):
    """As RAR does it: several texts of a listing look at the picture of one prompt."""
    prompts = builder.batch([builder.prompt(n) for n in range(len(SIZES))], 80)
    prompts = jax.tree.map(jnp.asarray, prompts)
    visual = jax.jit(model.visual_of)
    rows = [
        builder.embedder(n, text)
        for n in range(len(SIZES))
        for text in ("shape: round", "finish: matt; shape: square")
    ]
    bare = builder.batch(rows, 80, with_patches=False)
    bare = bare._replace(visual_start=np.repeat(np.asarray(prompts.visual_start), 2))
    shared = jax.jit(lambda batch, tokens: embed_batch(model, batch, tokens))
    found = shared(jax.tree.map(jnp.asarray, bare), visual(prompts))
    np.testing.assert_allclose(found, embed(builder.batch(rows, 80)), **CLOSE)


def test_gradients_reach_the_pictures_through_shared_bins(model, builder, rows):
    """A picture's gradient is the same in its own bin and beside others."""

    def numbers(rows):
        batch = jax.tree.map(jnp.asarray, builder.batch(rows, 64))
        return batch._replace(patches=normalized(batch.patches, batch.normalization, 1))

    batch = numbers(rows)

    def total(patches, batch):
        vectors = embed_batch(model, batch._replace(patches=patches))
        weights = jnp.arange(vectors.shape[1], dtype=jnp.float32)
        return jnp.sum(vectors @ weights[:, None])

    gradient = jax.jit(jax.grad(total))
    together = np.asarray(gradient(batch.patches, batch)).reshape(-1, batch.patches.shape[2])
    for number in (1, 4):
        one = numbers([rows[number]])
        count = int((np.asarray(one.patch_segment) > 0).sum())
        start = 4 * int(batch.visual_start[number])
        own = np.asarray(gradient(one.patches, one))[0, :count]
        scale = np.abs(own).max()
        assert scale > 0
        np.testing.assert_allclose(together[start : start + count], own, atol=1e-4 * scale)
