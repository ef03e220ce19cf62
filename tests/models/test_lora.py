"""Low-rank adapters: nothing at first, the same as a changed kernel later, alone in learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afmrl_jax.config import Execution, LoraConfig, LoraMap, ModelSettings
from afmrl_jax.config.lora import LORA_TARGETS
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.lora import add_lora, merge_lora, with_lora
from afmrl_jax.models.qwen_vl.adapters import tower_path
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.param_paths import is_adapter
from afmrl_jax.testing import TOWER_TARGETS, tiny_config
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.state import gradient_step, initial_state

LORA = LoraConfig(rank=3, alpha=6.0, targets=LORA_TARGETS)


@pytest.fixture
def batch(builder):
    rows = [builder.embedder(0, "shape: circle"), builder.embedder(3, None)]
    return jax.tree.map(jnp.asarray, builder.batch(rows))


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def dense(request, tokenizer):
    config = tiny_config(
        request.param, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    architecture = Architecture.of(config)
    return architecture, architecture.init(0)


def adapted(dense, lora=LORA):
    """A model with fresh adapters, and one whose adapters are random."""
    architecture = with_lora(dense[0], lora)
    fresh = add_lora(architecture, dense[1], 7)
    rng = np.random.default_rng(1)
    learned = {
        n: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) if is_adapter(n) else x
        for n, x in fresh.items()
    }
    return architecture, fresh, learned


@functools.partial(jax.jit, static_argnums=0)
def hidden(architecture, params, batch):
    return architecture.bind(params)(batch)


def test_fresh_adapters_change_nothing(dense, batch):
    architecture, fresh, learned = adapted(dense)
    assert fresh.keys() == architecture.shapes.keys()
    expected = hidden(*dense, batch)
    np.testing.assert_array_equal(hidden(architecture, fresh, batch), expected)
    assert np.abs(hidden(architecture, learned, batch) - expected).max() > 0.05


def test_merged_kernels_do_the_same(dense, batch):
    architecture, _, learned = adapted(dense)
    plain, merged = merge_lora(architecture, learned)
    assert plain == dense[0]
    assert {n: x.shape for n, x in merged.items()} == {n: x.shape for n, x in dense[1].items()}
    np.testing.assert_allclose(
        hidden(plain, merged, batch), hidden(architecture, learned, batch), atol=1e-5, rtol=1e-5
    )
    changed = {n for n in merged if not np.array_equal(merged[n], dense[1][n])}
    assert changed == {
        n
        for n in merged
        if n.split("/")[-2] in LORA_TARGETS and "layers" in n and n.endswith("kernel")
    }


@pytest.mark.parametrize("dense", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_variants_start_from_the_model_and_merge_into_it(dense, batch):
    """rsLoRA and DoRA, on every map of tower and decoder, layers of several ranks, looped over."""
    targets = TOWER_TARGETS[dense[0].config.family]
    lora = LoraConfig(3, 6.0, LORA_TARGETS, targets, rank_stabilized=True, dora=True)
    maps = (
        LoraMap("model/layers/mlp/up_proj", (1, 4), (6.0, 2.0)),
        LoraMap("visual_tower/blocks/attn/qkv", (2, 3), (1.5, 6.0)),
        LoraMap(tower_path(targets[-1]), (5,), (1.0,)),
    )
    looped = dense[0].with_execution(Execution(scan=True))
    architecture = with_lora(looped, lora, maps)
    fresh = add_lora(architecture, dense[1], 7)
    assert fresh.keys() == architecture.shapes.keys()
    expected = hidden(*dense, batch)
    np.testing.assert_allclose(hidden(architecture, fresh, batch), expected, atol=2e-5)
    rng = np.random.default_rng(1)
    learned = {
        n: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) if is_adapter(n) else x
        for n, x in fresh.items()
    }
    found = hidden(architecture, learned, batch)
    assert np.abs(found - expected).max() > 0.05
    plain, merged = merge_lora(architecture, learned)
    assert plain == looped
    np.testing.assert_allclose(hidden(plain, merged, batch), found, atol=3e-5, rtol=1e-5)
    assert not [
        n
        for n in dense[1]
        if n.endswith("kernel")
        and "patch_embed" not in n
        and np.array_equal(merged[n], dense[1][n])
    ]


def test_merging_keeps_the_type_of_the_kernels(dense):
    architecture, _, learned = adapted(dense)
    low = {n: x if is_adapter(n) else x.astype(jnp.bfloat16) for n, x in learned.items()}
    _, merged = merge_lora(architecture, low)
    name = "model/layers/mlp/down_proj"
    a, b = (np.asarray(low[f"{name}/lora_{x}"]) for x in "ab")
    exact = np.asarray(low[f"{name}/kernel"].astype(jnp.float32)) + LORA.scale * a @ b
    assert merged[f"{name}/kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(merged[f"{name}/kernel"].astype(jnp.float32), exact, rtol=2**-8)


def test_only_targets_of_the_decoder_have_adapters(dense):
    for targets in [("q_proj",), ("up_proj", "o_proj"), LoraConfig().targets]:
        architecture = with_lora(dense[0], LoraConfig(2, 4.0, targets))
        found = {n.rpartition("/")[0] for n in architecture.shapes if is_adapter(n)}
        assert {n.rpartition("/")[2] for n in found} == set(targets)
        assert all(n.startswith("model/layers/") for n in found)
        assert len(found) == len(targets)
    with pytest.raises(ConfigError, match="qkv"):
        LoraConfig(targets=("qkv",))


@pytest.mark.parametrize(
    ("dense", "variant"),
    [("qwen2_vl", "plain"), ("qwen2_vl", "dora"), ("qwen2_5_vl", "dora"), ("qwen3_vl", "dora")],
    indirect=["dense"],
)
def test_a_step_changes_adapters_alone(dense, batch, variant):
    lora = LORA
    if variant == "dora":
        lora = dataclasses.replace(LORA, dora=True, tower_targets=("attn.qkv", "attn.proj"))
    architecture, fresh, _ = adapted(dense, lora)
    settings = ModelSettings(weights="x", trained="lora", lora=lora, frozen_dtype="float32")
    trainee = Partition.of(architecture, fresh, settings, make_mesh(1, 1))
    assert set(trainee.trainable) == {n for n in fresh if is_adapter(n)}
    optimizer = optax.adam(1e-2)
    state = initial_state(trainee.trainable, optimizer)

    def loss(trainable):
        return (architecture.bind(trainee.whole(trainable))(batch) ** 3).mean(), {}

    # Twice: lora_a has no gradient while lora_b is zero.
    step = jax.jit(lambda state: gradient_step(state, loss, optimizer)[0])
    state = step(step(state))
    for name, value in trainee.whole(state.params).items():
        assert np.array_equal(value, fresh[name]) != is_adapter(name), name


# The maps of the decoder are those of every family.
@pytest.mark.parametrize("dense", ["qwen2_5_vl"], indirect=True)
def test_gradients_follow_from_those_of_the_dense_kernel(dense, batch):
    architecture, _, learned = adapted(dense)
    plain, merged = merge_lora(architecture, learned)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(32,)), jnp.float32)

    def loss(architecture, params):
        out = architecture.bind(params)(batch)
        return jnp.sum(jnp.where(batch.token_mask[..., None], out, 0.0) @ weight)

    low = jax.jit(jax.grad(functools.partial(loss, architecture)))(learned)
    full = jax.jit(jax.grad(functools.partial(loss, plain)))(merged)
    for name in (n for n in learned if n.endswith("lora_a")):
        stem = name.removesuffix("lora_a")
        kernel = np.asarray(full[stem + "kernel"])
        a, b = np.asarray(learned[stem + "lora_a"]), np.asarray(learned[stem + "lora_b"])
        for found, expected in (
            (low[name], LORA.scale * kernel @ b.swapaxes(1, 2)),
            (low[stem + "lora_b"], LORA.scale * a.swapaxes(1, 2) @ kernel),
        ):
            scale = np.abs(expected).max()
            assert scale > 1e-3
            np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
