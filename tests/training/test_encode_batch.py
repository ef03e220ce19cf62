"""Chunked training steps: the gradient of the whole batch, the vision tower once, on any mesh."""

import math
import re
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afmrl_jax.config import (
    AgclConfig,
    Execution,
    ImageConfig,
    InputDropout,
    LoraConfig,
    TextBudget,
)
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching import chunk_shapes
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.objectives.bm25 import fit_bm25
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.encode_batch import encode_batch
from afmrl_jax.training.partition import learns
from afmrl_jax.training.state import initial_state

SGD = optax.sgd(1.0)
PAIRS = 16
SETTINGS = AgclConfig(batch_size=PAIRS, gamma=0.3, delta=0.1, agreement_rho=0.9)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Every shape is a program within the program, and compiling takes nearly all the time."""
    monkeypatch.setattr(chunk_shapes, "MOST_SHAPES", 2)


@contextmanager
def double():
    """Everything in float64: what differs by more than rounding cannot hide in it."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(jnp, "float32", jnp.float64)
        yield


@pytest.fixture
def builder(badge_listings, tokenizer):
    text = TextBudget(buckets=(24, 48), max_title_tokens=12, max_attribute_tokens=16)
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), text)


def texts(builder):
    return {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}


def source(builder, dropout=None, **options):
    told = texts(builder)
    return ContrastiveSource(
        builder,
        steps=4,
        batch_size=PAIRS,
        sibling_share=0.5,
        seed=0,
        attributes_in_input=Lists(told),
        attributes_for_terms=told,
        vocabulary=Bm25Vocabulary.fit(list(told.values())),
        dropout=dropout or InputDropout(),
        **options,
    )


def statistics(builder):
    told = list(texts(builder).values())
    vocabulary = Bm25Vocabulary.fit(told)
    return fit_bm25(vocabulary.encode(told, 32), vocabulary.size)


def model(tokenizer, trained, dtype):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    lora = LoraConfig(rank=4) if trained == "lora" else None
    execution = Execution(dtype=np.dtype(dtype).name, scan=True)
    architecture = Architecture.of(tiny_config(lora=lora, **ids), execution)
    # Drawn here, for JAX draws other numbers in float64. An adapter that is nothing, as a new one
    # is, would leave half its gradient nothing too.
    rng = np.random.default_rng(1)
    params = {}
    for name, x in architecture.shapes.items():
        noise = rng.normal(size=x.shape)
        scale = 0.1 if name.endswith(("scale", "bias")) else x.shape[-2] ** -0.5
        params[name] = np.asarray(scale * noise + name.endswith("scale"), dtype)
    trainable = {n: x for n, x in params.items() if learns(n, trained)}
    frozen = {n: x for n, x in params.items() if n not in trainable}
    return architecture, trainable, frozen


def gradients(step, trainable, frozen, batch, mesh):
    """Of one step, by plain descent at rate 1; the loss; and the compiled step."""
    with jax.set_mesh(mesh):
        state = place(initial_state(jax.tree.map(jnp.array, trainable), SGD), mesh)
        inputs = (place(frozen, mesh), state, place_batch(batch, mesh), jax.random.key(0))
        compiled = step.lower(*inputs).compile()
        state, metrics = compiled(*inputs)
    found = {n: trainable[n] - np.asarray(x) for n, x in state.params.items()}
    return found, float(metrics["loss"]), compiled


def length(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in tree.values()))


def distance(found, expected):
    """Of two gradients, relative to the length of the second."""
    return length({n: found[n] - x for n, x in expected.items()}) / length(expected)


def step_of(builder, tokenizer, trained, dtype):
    architecture, trainable, frozen = model(tokenizer, trained, dtype)
    return make_agcl_step(architecture, SETTINGS, statistics(builder), SGD), trainable, frozen


@pytest.mark.parametrize(("trained", "devices"), [("lora", (1, 8)), ("all", (8,))])
def test_chunks_have_the_gradient_of_the_whole_batch(builder, tokenizer, trained, devices):
    whole = source(builder)[1]
    with double():
        own = step_of(builder, tokenizer, trained, np.float64)
        expected, loss, _ = gradients(*own, whole, make_mesh(1, 1))
        assert length(expected) > 1e-2
        for data in devices:
            chunked = source(builder, chunk_tokens=240 // data + 60, shares=data)[1]
            assert sum(int(x.used) for x in chunked.rows.texts) >= 2
            np.testing.assert_array_equal(chunked.products, whole.products)
            found, chunked_loss, compiled = gradients(*own, chunked, make_mesh(data, 1))
            assert chunked_loss == pytest.approx(loss, rel=1e-9)
            assert distance(found, expected) < 1e-9
            # Weights of a layer are matrices, and the loss gathers vectors in tiles; pixels and
            # activations of rows of tokens have more axes or places, and stay where they are.
            gathered = re.findall(
                r"= f\d+\[([\d,]*)\]\S* all-(?:gather|to-all)\(", compiled.as_text()
            )
            assert bool(gathered) == (data > 1)
            rows = 2 * len(whole.products)
            for shape in gathered:
                *places, _ = map(int, shape.split(","))
                assert len(places) <= 1 or math.prod(places) <= rows, shape


def test_in_float32_chunks_and_the_whole_batch_are_off_by_few_roundings(builder, tokenizer):
    # A few rows are ill-conditioned (float64 loses 400 roundings on them), and whatever reorders
    # sums moves those; the typical row tells how well a program computes.
    def vectors(dtype, batch):
        architecture, trainable, frozen = model(tokenizer, "lora", dtype)
        encode = partial(encode_batch, architecture, prefix=True)
        last, bare = jax.jit(encode)(frozen, trainable, batch)
        return np.concatenate([last, bare], axis=1, dtype=np.float64)

    whole, chunked = source(builder)[1], source(builder, chunk_tokens=300)[1]
    with double():
        exact = vectors(np.float64, whole)
        np.testing.assert_allclose(vectors(np.float64, chunked), exact, atol=1e-11)
    at_once, in_chunks = (
        np.median(np.abs(vectors(np.float32, batch) - exact).max(1)) for batch in (whole, chunked)
    )
    # How the two compare depends on the processor's kernels for matrices of these shapes (1.8
    # was seen); a program that computed in fewer bits would be off by 1e-5 and more.
    assert max(at_once, in_chunks) < 1e-6


def equations(jaxpr, times=1):
    """All equations, with the number of times that loops run each."""
    for equation in jaxpr.eqns:
        yield equation, times
        again = times * equation.params.get("length", 1)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, again)


def rows_multiplied(jaxpr, width):
    """Rows of all matrix products whose left side has `width` columns."""
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            left = equation.invars[0].aval.shape
            contracted = equation.params["dimension_numbers"][0][0]
            if [left[axis] for axis in contracted] == [width]:
                total += times * int(np.prod(left)) // width
    return total


@pytest.mark.parametrize(("trained", "forwards"), [("lora", 1), ("decoder", 1), ("all", 2)])
def test_how_often_the_vision_tower_sees_a_picture(builder, tokenizer, trained, forwards):
    step, trainable, frozen = step_of(builder, tokenizer, trained, np.float32)
    batch = source(builder, chunk_tokens=300)[1]
    inputs = (
        frozen,
        initial_state(jax.tree.map(jnp.asarray, trainable), SGD),
        batch,
        jax.random.key(0),
    )
    jaxpr = jax.make_jaxpr(step)(*inputs).jaxpr
    # The patch embedding is the one product that contracts the numbers of a patch; its gradient
    # contracts patches.
    patches = sum(x.patch_segment.size for x in batch.rows.pictures)
    width = batch.rows.pictures[0].patches.shape[-1]
    assert rows_multiplied(jaxpr, width) == forwards * patches
    # Nor does any loop keep a copy of the weights for each of its rounds.
    weights = {x.shape for x in (*trainable.values(), *frozen.values()) if x.ndim > 2}
    loops = [
        e
        for e, _ in equations(jaxpr)
        # Those over chunks; the two layers of the tiny model are looped over too.
        if e.primitive.name == "scan" and e.params["length"] > 2
    ]
    assert loops
    assert not weights & {out.aval.shape[1:] for loop in loops for out in loop.outvars}
