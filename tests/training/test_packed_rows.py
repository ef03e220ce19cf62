"""Rows that share bins: the vectors, losses and gradients of rows that are padded one by one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afmrl_jax.config import (
    AgclConfig,
    DistillConfig,
    Execution,
    ImageConfig,
    TextBudget,
    ViewShares,
)
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching import chunk_shapes
from afmrl_jax.data.batching.row_packing import PackedRows, RowPacker
from afmrl_jax.data.batching.shapes import padding_counts
from afmrl_jax.data.sources.batches import Judges
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.agcl import contrastive_source, make_agcl_step, term_statistics
from afmrl_jax.training.distill import make_distill_step
from afmrl_jax.training.encode_batch import encode_batch
from afmrl_jax.training.state import initial_state

SGD = optax.sgd(1.0)
LISTS = ("shape: round", "shape: round; colour: red; finish: matt and bright", "", "colour: red")


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


@pytest.fixture
def architecture(tokenizer):
    config = tiny_config(
        "qwen2_vl", vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    return Architecture.of(config, Execution())


def contrastive(builder, *, packed=False, shares=1, **options):
    texts = {x.listing_id: LISTS[n % 4] for n, x in enumerate(builder.listings)}
    settings = AgclConfig(steps=4, batch_size=12, **options)
    return contrastive_source(builder, settings, 3, read=Lists(texts), packed=packed, shares=shares)


def distill(builder, *, packed, shares=1):
    texts = [LISTS[n % 2] for n in range(len(builder.listings))]
    return DistillSource(
        builder, texts, steps=4, batch_size=12, seed=0, packed=packed, shares=shares
    )


def learned(step, architecture, batch, data):
    """Loss, and what a step of plain descent subtracts from the parameters."""
    mesh = make_mesh(data, 1)
    with jax.set_mesh(mesh):
        params = architecture.init(0)
        state = place(initial_state(jax.tree.map(jnp.array, params), SGD), mesh)
        before = {n: np.asarray(x) for n, x in params.items()}
        plain = {x: None for x in ("bad_pictures", "view") if hasattr(batch, x)}
        batch = place_batch(batch._replace(**plain), mesh)
        state, metrics = step({}, state, batch, jax.random.key(0))
    return float(metrics["loss"]), {n: before[n] - np.asarray(x) for n, x in state.params.items()}


def test_each_row_has_the_vectors_it_has_alone(builder, architecture):
    alone, packed = (contrastive(builder, packed=x)[1] for x in (False, True))
    assert isinstance(packed.rows, PackedRows)
    assert packed.rows.segment.max() > 1
    encode = jax.jit(partial(encode_batch, architecture, {}, prefix=True))
    expected, found = (encode(architecture.init(0), x._replace(view=None)) for x in (alone, packed))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("stage", ["agcl", "distill"])
def test_steps_have_the_loss_and_the_gradient_of_padded_rows(builder, architecture, stage):
    if stage == "agcl":
        source, step = contrastive, make_agcl_step(architecture, AgclConfig(gamma=0.0), None, SGD)
    else:
        source, step = distill, make_distill_step(architecture, DistillConfig(), SGD)
    loss, gradient = learned(step, architecture, source(builder, packed=False)[1], 1)
    for data in (1, 8):
        packed = source(builder, packed=True, shares=data)[1]
        assert len(packed.rows.segment) % data == 0
        found, own = learned(step, architecture, packed, data)
        assert found == pytest.approx(loss, rel=1e-5), data
        assert off(own, gradient) < 1e-4, data


def off(found, expected):
    """Distance of two gradients, relative to the length of the second."""
    size = np.sqrt(sum(np.sum(x**2) for x in expected.values()))
    return np.sqrt(sum(np.sum((found[n] - x) ** 2) for n, x in expected.items())) / size


def test_titles_against_pictures_are_the_same_in_bins_and_in_chunks_on_two_devices(
    builder, architecture, monkeypatch
):
    # Every shape is a program within the program, and compiling takes nearly all the time.
    monkeypatch.setattr(chunk_shapes, "MOST_SHAPES", 2)
    views = ViewShares(text_image=1.0)
    step = make_agcl_step(architecture, AgclConfig(gamma=0.0), None, SGD)
    whole = contrastive(builder, views=views)[1]
    assert whole.view == "text-image"
    loss, gradient = learned(step, architecture, whole, 1)
    for arranged in ({"packed": True}, {"chunk_tokens": 120}):
        batch = contrastive(builder, views=views, shares=2, **arranged)[1]
        found, own = learned(step, architecture, batch, 2)
        assert found == pytest.approx(loss, rel=1e-5), arranged
        assert off(own, gradient) < 1e-4, arranged


@pytest.mark.slow
@pytest.mark.parametrize("data", [1, 8])
def test_rules_of_weights_and_masks_are_the_same_in_bins_and_in_chunks(
    builder, architecture, data, rng
):
    """Judges and terms come by the place of a pair, wherever its rows were sorted to."""
    settings = AgclConfig(
        steps=4,
        batch_size=16,
        sibling_share=0.5,
        gamma=1.0,
        delta=None,
        agreement_rho=0.5,
        agreement_epsilon=0.2,
        weighted_pairs="agreeing",
        positive_weight="neutral",
        normalize_weights=True,
        permute_weights=True,
        teacher_share=0.9,
        oracle_mask="product",
    )
    texts = {x.listing_id: LISTS[n % 4] for n, x in enumerate(builder.listings)}
    vocabulary, statistics = term_statistics(builder, texts)
    seen = rng.normal(size=(len(builder.listings), 3)).astype(np.float32)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    # Two products each are one in truth.
    twins = (np.arange(len(builder.listings)) // 8).astype(np.int32)

    def batch(chunk_tokens=None, **options):
        asked = dataclasses.replace(settings, chunk_tokens=chunk_tokens)
        return contrastive_source(
            builder,
            asked,
            3,
            attributes=texts,
            read=Lists(texts),
            vocabulary=vocabulary,
            judges=Judges(seen, twins),
            **options,
        )[1]

    step = make_agcl_step(architecture, settings, statistics, SGD)
    loss, gradient = learned(step, architecture, batch(), 1)
    plain = make_agcl_step(architecture, settings.infonce(), None, SGD)
    assert learned(plain, architecture, batch(), 1)[0] != pytest.approx(loss, rel=1e-2)
    for arranged in ({"packed": True}, {"chunk_tokens": 120}):
        found, own = learned(step, architecture, batch(shares=data, **arranged), data)
        assert found == pytest.approx(loss, rel=1e-5)
        assert off(own, gradient) < 1e-4


@pytest.mark.parametrize("source", [contrastive, distill])
def test_batches_are_the_same_rows_and_less_padding(builder, source):
    for step in range(4):
        alone, packed = (source(builder, packed=x)[step] for x in (False, True))
        places, bins = packed.rows.segment, packed.rows.bins
        ends = packed.rows.last.reshape(-1)
        for row, end in enumerate(ends):
            tokens = alone.rows.tokens[row][alone.rows.token_mask[row]]
            own = slice(end + 1 - len(tokens), end + 1)
            np.testing.assert_array_equal(bins.tokens.reshape(-1)[own], tokens)
            assert len(set(places.reshape(-1)[own].tolist())) == 1
        assert (places > 0).sum() == alone.rows.token_mask.sum()
        waste = [
            padded / all_
            for padded, all_ in (padding_counts(x.rows)["text"] for x in (packed, alone))
        ]
        assert waste[0] < waste[1]


def test_a_batch_that_needs_more_bins_gets_more_and_a_longer_row_is_refused(builder, tokenizer):
    rows = [builder.embedder(n, LISTS[1]) for n in range(8)]
    packer = RowPacker.of([[20] * 4], tokenizer, builder.image, builder.text)
    found = packer(rows)
    assert len(found.segment) > packer.counts[-1]
    assert packer([*rows, rows[0]]).bins.tokens.shape[1] == packer.length
    long = rows[0].__class__(rows[0].tokens * 9, rows[0].pictures * 9)
    with pytest.raises(CatalogueError, match=r"add a bucket to text\.buckets"):
        packer([long])


@pytest.mark.parametrize(("shortest", "longest"), [(80, 90), (48, 58), (60, 68), (100, 110)])
def test_rows_of_nearly_one_length_leave_little_padding(builder, tokenizer, shortest, longest):
    rng = np.random.default_rng(longest)
    batches = [rng.integers(shortest, longest + 1, 96).tolist() for _ in range(6)]
    packer = RowPacker.of(batches, tokenizer, builder.image, TextBudget(buckets=(192,)))
    places = packer.length * max(packer.counts)
    assert all(1 - sum(sizes) / places < 0.12 for sizes in batches), (packer.length, packer.counts)
