"""Pictures and titles of all sizes: a handful of programs, and none after the first epoch."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching.shapes import ShapeCounter
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import epoch_indices
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.retrieval import encoder as encode
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.testing import tiny_config

COUNT, BATCH = 160, 4
IMAGE = ImageConfig(min_pixels=16 * 16)
TEXT = TextBudget(buckets=(24, 48))


@pytest.fixture(scope="module")
def builder(tokenizer):
    """Listings whose pictures and titles are of all sizes: most small, some large."""
    rng = np.random.default_rng(0)

    def listing(number):
        sides = 16 + 60 * rng.random(2) ** 1.5
        file = io.BytesIO()
        shape = (int(sides[0]), int(sides[1]), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
        title = " ".join(["badge"] * int(rng.choice([2, 3, 5, 20], p=[0.3, 0.3, 0.3, 0.1])))
        return Listing(str(number), str(number // 2), title, file.getvalue())

    return RowBuilder.of([listing(n) for n in range(COUNT)], tokenizer, IMAGE, TEXT)


@pytest.fixture(scope="module")
def architecture(tokenizer):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    return Architecture.of(tiny_config(**ids))


def test_a_second_epoch_compiles_nothing(builder, architecture):
    """Shapes are few, so that an epoch meets all of them (here each more than once)."""
    params, shapes = architecture.init(0), ShapeCounter()

    @jax.jit
    def forward(params, batch):
        return embed_batch(architecture.bind(params), batch)

    compiled = []
    steps = COUNT // BATCH
    for step in range(4 * steps):
        rows = [builder.embedder(int(i), None) for i in epoch_indices(COUNT, BATCH, step, 0)]
        batch = builder.batch(rows)
        shapes.add(batch)
        forward(params, batch)
        assert forward._cache_size() == len(shapes)
        compiled.append(len(shapes))
    assert compiled[-1] == compiled[steps - 1], "a later epoch compiled"
    assert 2 < len(shapes) <= len(TEXT.buckets) * len(IMAGE.pack_shares)


def test_the_encoder_names_its_shapes_and_compiles_each_once(builder, architecture, capsys):
    encoder = Encoder(architecture, architecture.init(0), batch_size=BATCH)
    before = encode._embed._cache_size()
    first = encoder.embed(builder, np.arange(COUNT), label="gallery")
    compiled = encode._embed._cache_size() - before
    lines = [x for x in capsys.readouterr().err.splitlines() if "compiled" in x]
    assert len(lines) == 1
    assert lines[0].startswith(f"gallery: {compiled} shapes compiled (rows x tokens / patch bins):")
    assert lines[0].count("4x24/") + lines[0].count("4x48/") == compiled
    again = encoder.embed(builder, np.arange(COUNT)[::-1])
    assert encode._embed._cache_size() - before == compiled
    np.testing.assert_allclose(again[::-1], first, atol=1e-5)
    assert "compiled" not in capsys.readouterr().err


def test_a_counter_says_what_it_has_seen(builder):
    shapes = ShapeCounter()
    assert not shapes
    for _ in range(2):
        shapes.add(builder.batch([builder.embedder(0, None, picture=False)] * 4, 24))
    assert str(shapes) == "1 shape compiled (rows x tokens / patch bins): 4x24/1"
    shapes.add(builder.batch([builder.embedder(0, None, picture=False)], 48, with_patches=False))
    assert str(shapes).endswith("2 shapes compiled (rows x tokens / patch bins): 1x48/0, 4x24/1")


@pytest.mark.parametrize("picture", [True, False])
def test_rows_that_share_bins_have_the_vectors_that_they_have_alone(
    builder, architecture, capsys, picture
):
    params = architecture.init(0)
    alone, packed = (Encoder(architecture, params, 24, packed=x) for x in (False, True))
    expected = alone.embed(builder, np.arange(COUNT), picture=picture)
    found = packed.embed(builder, np.arange(COUNT), picture=picture, label="gallery")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "compiled" in x]
    assert int(line.split()[1]) <= (6 if picture else 2)
    few = packed.embed(builder, np.arange(5), picture=picture)
    np.testing.assert_allclose(few, expected[:5], atol=1e-5)
