"""Training steps, embedding and generation on every mesh of eight devices against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afmrl_jax.config import (
    AgclConfig,
    DistillConfig,
    ImageConfig,
    InputDropout,
    OptimizerConfig,
    TextBudget,
)
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.sources.batches import Judges
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.embedder import embed_batch
from afmrl_jax.models.generation import generate
from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.bm25 import fit_bm25
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.distill import make_distill_step
from afmrl_jax.training.state import initial_state, learning_rate_schedule

# Plain gradient descent: what it leaves in the parameters is the gradient itself. Adam would blow
# the rounding of vanishing gradients up to whole steps.
SGD = optax.sgd(1.0)
MESHES = ((1, 8), (2, 4), (8, 1))


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


def architecture(family, tokenizer):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    return Architecture.of(tiny_config(family, **ids))


def one_step(step, initial, batch, mesh):
    with jax.set_mesh(mesh):
        state = place(initial_state(initial, SGD), mesh)
        state, metrics = step({}, state, place_batch(batch, mesh), jax.random.key(0))
    params = {name: np.asarray(value) for name, value in state.params.items()}
    return params, float(metrics["loss"]), int(state.step)


def assert_equal_on_one_and_eight(step, initial, batch):
    def copy():
        return jax.tree.map(jnp.copy, initial)  # The step donates what it is given.

    one, loss, count = one_step(step, copy(), batch, make_mesh(1, 1))
    assert count == 1
    # Rounding is a share of what is summed: here of an array's largest gradient, 0.07 to 10.
    size = {name: np.abs(one[name] - before).max() for name, before in copy().items()}
    assert min(size.values()) > 1e-2
    for sizes in MESHES:
        eight, spread_loss, _ = one_step(step, copy(), batch, make_mesh(*sizes))
        assert loss == pytest.approx(spread_loss, rel=1e-5)
        for name, value in one.items():
            np.testing.assert_allclose(
                eight[name], value, rtol=0, atol=1e-5 * size[name], err_msg=f"{name} {sizes}"
            )


def test_distillation(builder, tokenizer):
    model = architecture("qwen2_5_vl", tokenizer)
    texts = [f"shape: {x.product_id}" for x in builder.listings]
    source = DistillSource(builder, texts, steps=1, batch_size=8, seed=0)
    step = make_distill_step(model, DistillConfig(), SGD)
    assert_equal_on_one_and_eight(step, model.init(0), source[0])


def agcl_step(builder, model, *, dropout, in_input=True, judges=None, **options):
    """A step with its batch; attributes weight the pairs, and are read where `in_input`."""
    texts = {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}
    vocabulary = Bm25Vocabulary.fit(list(texts.values()))
    settings = AgclConfig(
        **{"batch_size": 8, "gamma": 0.3, "delta": 0.1, "agreement_rho": 0.9, **options}
    )
    source = ContrastiveSource(
        builder,
        steps=1,
        batch_size=8,
        sibling_share=0.5,
        seed=0,
        attributes_in_input=Lists(texts) if in_input else None,
        attributes_for_terms=texts,
        vocabulary=vocabulary,
        dropout=dropout,
        judges=judges,
    )
    terms = vocabulary.encode(list(texts.values()), 32)
    return make_agcl_step(model, settings, fit_bm25(terms, vocabulary.size), SGD), source[0]


def test_agcl(builder, tokenizer):
    model = architecture("qwen2_vl", tokenizer)
    step, batch = agcl_step(builder, model, dropout=InputDropout())
    assert_equal_on_one_and_eight(step, model.init(0), batch)


EVERY_RULE = {
    "positive_weight": "neutral",
    "weighted_pairs": "agreeing",
    "normalize_weights": True,
    "permute_weights": True,
    "teacher_share": 0.9,
    "oracle_mask": "product",
}


def test_agcl_with_every_rule(builder, tokenizer, rng):
    model, count = architecture("qwen2_vl", tokenizer), len(builder.listings)
    taught = rng.normal(size=(count, 6)).astype(np.float32)
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    judges = Judges(taught, np.arange(count, dtype=np.int32) // 5)
    step, batch = agcl_step(builder, model, dropout=InputDropout(), judges=judges, **EVERY_RULE)
    (one, loss, _), (eight, spread, _) = (
        one_step(step, model.init(0), batch, make_mesh(*sizes)) for sizes in ((1, 1), (8, 1))
    )
    assert loss == pytest.approx(spread, rel=1e-5)
    before = model.init(0)
    for name, value in one.items():
        size = np.abs(value - before[name]).max()
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=1e-5 * size, err_msg=name)


def test_the_prefix_is_contrasted_as_the_rows_without_attributes_are(
    builder, tokenizer, monkeypatch
):
    def value_alone(state, loss, optimizer):
        return state, loss(state.params)[1]

    # The gradient is most of what a step compiles, and only the loss is looked at.
    monkeypatch.setattr("afmrl_jax.training.agcl.gradient_step", value_alone)
    model = architecture("qwen2_vl", tokenizer)
    keep_all = InputDropout(attributes=0, whole_list=0, title=0, picture=0, words=0, patches=0)

    def loss(in_input, weight):
        step, batch = agcl_step(
            builder, model, dropout=keep_all, in_input=in_input, prefix_weight=weight
        )
        return one_step(step, model.init(0), batch, make_mesh(1, 1))[1]

    told, bare = loss(True, 0.0), loss(False, 0.25)
    assert told != pytest.approx(bare, rel=1e-3)
    assert loss(True, 0.25) == pytest.approx(0.75 * told + 0.25 * bare, rel=1e-5)


def test_settings_of_the_loss_reach_it(builder, tokenizer, monkeypatch):
    model, asked = architecture("qwen2_vl", tokenizer), {}

    def recorded(*arrays, **options):
        asked.update(options)
        return agcl_loss(*arrays, **options)

    monkeypatch.setattr("afmrl_jax.training.agcl.agcl_loss", recorded)
    own = {"positives": "product", "bm25_reverse": True, "symmetric": False, "gamma": 0.7}
    own |= {"vector_precision": "bf16_x3"}
    step, batch = agcl_step(builder, model, dropout=InputDropout(), **own)
    with jax.set_mesh(make_mesh(1, 1)):
        state = initial_state(model.init(0), SGD)
        jax.eval_shape(step, {}, state, batch, jax.random.key(0))
    assert own.items() <= asked.items()


@pytest.mark.parametrize(
    ("family", "meshes"),
    # What families differ in is which arrays there are, and the mesh of both axes splits all.
    [("qwen2_vl", ((2, 4),)), ("qwen2_5_vl", ((2, 4),)), ("qwen3_vl", (*MESHES, (4, 2)))],
)
def test_vectors_and_greedy_texts_on_every_mesh(builder, tokenizer, family, meshes):
    model = architecture(family, tokenizer)
    params = model.init(0)
    batch = builder.batch([builder.prompt(i) for i in range(8)])

    @jax.jit
    def both(params, batch):
        bound = model.bind(params)
        texts = generate(
            bound,
            batch,
            group_size=2,
            max_new_tokens=4,
            temperature=0.0,
            key=jax.random.key(0),
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )
        return embed_batch(bound, batch), texts.tokens

    vectors, tokens = map(np.asarray, both(params, batch))
    for sizes in meshes:
        mesh = make_mesh(*sizes)
        with jax.set_mesh(mesh):
            found = both(place(params, mesh), place_batch(batch, mesh))
        np.testing.assert_allclose(found[0], vectors, atol=1e-5, err_msg=str(sizes))
        np.testing.assert_array_equal(found[1], tokens, err_msg=str(sizes))


def test_learning_rate_rises_then_falls():
    config = OptimizerConfig(1e-3, warmup_share=0.1, final_share=0.05)
    rates = [float(learning_rate_schedule(config, 100)(n)) for n in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[100] == pytest.approx(5e-5)
    assert np.diff(rates[10:]).max() <= 0
