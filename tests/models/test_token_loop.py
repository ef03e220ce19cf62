"""The token loop against teacher-forced passes of the same model: adapters, types and meshes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import Execution, LoraConfig
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.generation import completion_logprobs, generate
from afmrl_jax.models.lora import add_lora, with_lora
from afmrl_jax.models.sampling import draw, sample_keys
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.param_paths import is_adapter
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config

KEY = jax.random.key(3)


def made(tokenizer, *, lora=False, dtype="float32", scan=None):
    """An architecture with Qwen2.5's tower, and weights away from zero."""
    size = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen2_5_vl", **size), Execution(dtype, scan))
    params = architecture.init(0)
    if lora:
        architecture = with_lora(architecture, LoraConfig(4, 8.0, dora=lora == "dora"))
        params = add_lora(architecture, params, 7)
    rng = np.random.default_rng(1)
    return architecture, {
        n: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) for n, x in params.items()
    }


@partial(jax.jit, static_argnames=("architecture", "group"))
def sampled(architecture, params, prompts, group=3):
    return generate(
        architecture.bind(params),
        prompts,
        group_size=group,
        max_new_tokens=6,
        temperature=1.0,
        key=KEY,
        eos_id=-1,
        pad_id=0,
    )


@partial(jax.jit, static_argnames="architecture")
def scored(architecture, params, prompts, found):
    model = architecture.bind(params)
    return completion_logprobs(model, prompts, found.tokens, found.mask)[0]


@pytest.fixture
def prompts(builder):
    return jax.tree.map(jnp.asarray, builder.batch([builder.prompt(i) for i in (0, 7, 50, 3)]))


@pytest.mark.parametrize(
    ("scan", "lora", "group"), [(True, "plain", 3), (False, "plain", 1), (None, "dora", 3)]
)
def test_merged_adapters_sample_as_those_by_themselves(tokenizer, prompts, group, scan, lora):
    architecture, params = made(tokenizer, lora=lora, scan=scan)
    found = sampled(architecture, params, prompts, group=group)
    twin = scored(architecture, params, prompts, found)
    np.testing.assert_allclose(found.logprobs, twin, atol=2e-5)
    plain = {n: jnp.zeros_like(x) if is_adapter(n) else x for n, x in params.items()}
    assert np.abs(twin - scored(architecture, plain, prompts, found)).max() > 0.1


@pytest.mark.parametrize("lora", [False, True])
def test_importance_ratios_of_a_low_precision_sampler_stay_near_one(tokenizer, prompts, lora):
    """Merging rounds once more; a first update's ratios must still be far within the clip of 0.2.

    Samples keep the log-probabilities of the merged sampler, which drew them: with those in the
    denominator the ratio is an unbiased weight, whatever the rounding.
    """
    architecture, params = made(tokenizer, lora=lora, dtype="bfloat16")
    params = {n: x if is_adapter(n) else x.astype(jnp.bfloat16) for n, x in params.items()}
    found = sampled(architecture, params, prompts, group=16)
    ratio = np.exp(scored(architecture, params, prompts, found) - found.logprobs)
    assert abs(float(ratio.mean()) - 1) < 0.01
    assert float(np.mean(np.abs(ratio - 1) > 0.1)) < 0.02


def test_trained_weights_are_cast_as_a_cast_before_would(tokenizer, prompts):
    """float32 parameters in a bfloat16 program: one copy in front of the loop, the same samples."""
    architecture, params = made(tokenizer, dtype="bfloat16")
    early = architecture.as_computed(params)
    kernel, norm = (f"model/layers/{x}" for x in ("mlp/up_proj/kernel", "input_layernorm/scale"))
    assert (early[kernel].dtype, early[norm].dtype) == (jnp.bfloat16, jnp.float32)
    late, soon = (sampled(architecture, x, prompts) for x in (params, early))
    np.testing.assert_array_equal(late.tokens, soon.tokens)
    np.testing.assert_array_equal(late.logprobs, soon.logprobs)
    np.testing.assert_array_equal(
        *(scored(architecture, x, prompts, late) for x in (params, early))
    )


def test_what_is_cast_early_may_outlive_the_original(tokenizer):
    architecture, params = made(tokenizer)
    kept = architecture.as_computed(params)
    expected = {n: np.asarray(x) for n, x in params.items()}
    for x in params.values():
        x.delete()
    for name, value in kept.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def uses_of_constants(jaxpr, constants):
    """Primitives that read `constants` (variables) of a jaxpr, those of inner jaxprs included."""
    found = set()
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        positions = [i for i, x in enumerate(equation.invars) if any(x is one for one in constants)]
        if inner is not None and positions:
            closed = getattr(inner, "jaxpr", inner)
            found |= uses_of_constants(closed, {closed.invars[i] for i in positions})
        elif positions:
            found.add(equation.primitive.name)
    return found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_a_turn_multiplies_by_weights_and_does_nothing_else_to_them(
    tokenizer, prompts, lora, group
):
    architecture, params = made(tokenizer, lora=lora, dtype="bfloat16", scan=True)

    write = partial(sampled.__wrapped__, architecture, group=group)
    jaxpr = jax.make_jaxpr(write)(params, prompts).jaxpr
    loop = next(x for x in jaxpr.eqns if x.primitive.name == "while")
    body = loop.params["body_jaxpr"].jaxpr
    constants = body.invars[: loop.params["body_nconsts"]]
    text = architecture.config.text
    narrowest = text.num_kv_heads * text.head_dim
    weights = {x for x in constants if x.aval.ndim == 2 and min(x.aval.shape) >= narrowest}
    # Seven maps a layer, and the token table at both ends.
    assert len(weights) == 7 * text.num_layers + 2
    assert {x.aval.dtype for x in weights} == {jnp.dtype(jnp.bfloat16)}
    # A lookup in the token table is a gather.
    assert uses_of_constants(body, weights) == {"dot_general", "gather"}


@pytest.mark.parametrize(("data", "model", "group"), [(4, 1, 1), (2, 4, 2)])
def test_a_mesh_writes_what_one_device_writes(tokenizer, prompts, data, model, group):
    architecture, params = made(tokenizer, lora=True)
    expected = sampled(architecture, params, prompts, group=group)
    mesh = make_mesh(data, model)
    with jax.set_mesh(mesh):
        found = sampled(architecture, place(params, mesh), place_batch(prompts, mesh), group=group)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-5)


@pytest.mark.parametrize("size", [5, 128, 300])
def test_draws_follow_the_softmax_and_never_take_a_forbidden_token(rng, size):
    count = 20000
    logits = rng.normal(size=size).astype(np.float32)
    logits[rng.permutation(size)[: size // 2]] = np.finfo(np.float32).min
    keys = sample_keys(KEY, jnp.zeros(1, jnp.int32), count)
    many = jnp.broadcast_to(jnp.asarray(logits), (1, count, size))
    found = np.bincount(np.asarray(draw(many, keys, jnp.int32(2))).ravel(), minlength=size)
    assert len(found) == size
    chance = np.exp(logits - logits.max()).astype(np.float64)
    chance /= chance.sum()
    assert found[chance == 0].sum() == 0
    error = np.sqrt(chance * (1 - chance) / count)
    assert (np.abs(found / count - chance) <= 5 * error + 1e-9).all()
