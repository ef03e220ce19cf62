"""The update against one row a sample, in parts and at once, on one device and on eight."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, RarConfig, TextBudget
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.row_packing import RowPacker
from afmrl_jax.data.batching.tail_packing import packed_tails
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.objectives.grpo import group_advantages, grpo_loss
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.rar.policy_gradient import (
    Samples,
    completion_scores,
    num_microbatches,
    policy_gradient,
)

GROUP, LENGTH = 3, 6
SETTINGS = RarConfig(temperature=0.8, kl_coefficient=0.1, clip_low=0.1, clip_high=0.3)
# One function for all tests, so that those that ask for the same program share it.
gradient = jax.jit(policy_gradient, static_argnums=(0, 1, 5))


@pytest.fixture(params=["pictures"])
def problem(request, badge_listings, tokenizer, rng):
    """A G, and made-up samples of 8 prompts: rows of the prompts, then a `Samples`."""
    builder = RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen2_5_vl", **ids))
    rows = [builder.prompt(i) for i in (0, 7, 50, 3, 11, 20, 31, 42)]
    if request.param == "text alone":
        rows = [Row([t for t in x.tokens if t != tokenizer.image_pad_id], ()) for x in rows]
    shape = (len(rows), GROUP, LENGTH)
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, shape[:2])[..., None]
    malformed = np.zeros(shape[:2], bool)
    malformed[0, 1] = malformed[2] = True
    samples = Samples(
        prompts=builder.batch(rows),
        tokens=rng.integers(10, tokenizer.vocab_size, shape).astype(np.int32),
        mask=mask,
        old=-rng.uniform(4, 6, shape).astype(np.float32),
        reference=-rng.uniform(4, 6, shape).astype(np.float32),
        rewards=np.where(malformed, -0.1, rng.integers(0, 2, shape[:2])).astype(np.float32),
        malformed=malformed,
    )
    return architecture, architecture.init(0), builder, rows, samples


def packed(problem):
    """The prompts in bins."""
    _, _, builder, rows, samples = problem
    lengths = [len(row.tokens) for row in rows]
    packer = RowPacker.of([lengths], builder.tokenizer, builder.image, builder.text)
    found = packer.prompts(rows, samples.prompts.tokens.shape[1])
    assert found.packed.segment.max() > 1
    return found


def one_row_a_sample(problem):
    """Loss as a function of the parameters: every sample a row with a picture of its own."""
    architecture, _, builder, prompts, samples = problem
    rows, places = [], []
    for number, prompt in enumerate(prompts):
        for member in range(GROUP):
            count = int(samples.mask[number, member].sum())
            told = samples.tokens[number, member, :count].tolist()
            rows.append(Row([*prompt.tokens, *told], prompt.pictures))
            # The hidden state of a token says what comes next.
            places.append(len(prompt.tokens) - 1 + np.arange(LENGTH))
    batch = builder.batch(rows)
    places = np.minimum(np.array(places), batch.tokens.shape[1] - 1)
    advantages = group_advantages(jnp.asarray(samples.rewards), jnp.asarray(samples.malformed))

    def loss(params):
        model = architecture.bind(params)
        hidden = jnp.take_along_axis(model(batch), jnp.asarray(places)[..., None], axis=1)
        logprobs = jax.nn.log_softmax(model.logits(hidden) / SETTINGS.temperature)
        flat = jnp.asarray(samples.tokens).reshape(-1, LENGTH, 1)
        chosen = jnp.take_along_axis(logprobs, flat, axis=-1).reshape(samples.tokens.shape)
        return grpo_loss(
            chosen,
            *(jnp.asarray(x) for x in (samples.old, samples.reference)),
            advantages,
            jnp.asarray(samples.mask),
            clip_low=SETTINGS.clip_low,
            clip_high=SETTINGS.clip_high,
            kl_coefficient=SETTINGS.kl_coefficient,
        )[0]

    return loss


def close(found, expected):
    largest = max(float(jnp.max(jnp.abs(x))) for x in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("problem", "parts"),
    [("pictures", (1, 4)), ("text alone", (4,))],
    indirect=["problem"],
)
def test_value_and_gradient_are_those_of_one_row_a_sample(problem, parts):
    architecture, params, _, _, samples = problem
    loss, expected = jax.jit(jax.value_and_grad(one_row_a_sample(problem)))(params)
    for prompts, shared in itertools.product((samples.prompts, packed(problem)), (False, True)):
        for count in parts:
            tails = packed_tails(samples.mask.sum(-1), LENGTH, count) if shared else None
            own = samples._replace(prompts=prompts, tails=tails)
            found, metrics = gradient(architecture, SETTINGS, {}, params, own, count)
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
            close(found, expected)


@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4)])
def test_gradients_on_a_mesh_are_those_of_one_device(problem, data, model):
    architecture, params, _, _, samples = problem
    expected, metrics = gradient(architecture, SETTINGS, {}, params, samples, 1)
    mesh = make_mesh(data, model)
    with jax.set_mesh(mesh):
        placed = place_batch(samples, mesh)
        found, spread = gradient(architecture, SETTINGS, {}, place(params, mesh), placed, 1)
    for name, value in metrics.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    close({name: np.asarray(x) for name, x in found.items()}, expected)


def test_a_frozen_tower_has_no_gradient_and_changes_none(problem):
    architecture, params, _, _, samples = problem
    whole, _ = gradient(architecture, SETTINGS, {}, params, samples, 4)
    frozen = {n: x for n, x in params.items() if n.startswith("visual_tower/")}
    learning = {n: x for n, x in params.items() if n not in frozen}
    part, _ = gradient(architecture, SETTINGS, frozen, learning, samples, 4)
    assert part.keys() == learning.keys()
    close(part, {name: whole[name] for name in part})


def test_dropped_groups_leave_the_mean_to_the_others(problem):
    architecture, params, _, _, samples = problem
    settings = dataclasses.replace(SETTINGS, drop_dead_groups=True, kl_coefficient=0.0)
    advantages = group_advantages(jnp.asarray(samples.rewards), jnp.asarray(samples.malformed))
    teaching = np.asarray(jnp.any(advantages != 0, axis=1))
    assert 0 < teaching.sum() < len(teaching)
    found, _ = gradient(architecture, settings, {}, params, samples, 1)
    plain = dataclasses.replace(settings, drop_dead_groups=False)
    whole, _ = gradient(architecture, plain, {}, params, samples, 1)
    scale = len(teaching) / teaching.sum()
    close(found, {name: scale * x for name, x in whole.items()})


@pytest.mark.parametrize("normalization", ["sample", "token", "constant"])
def test_a_nat_a_token_is_one_however_tokens_are_weighed(problem, normalization):
    architecture, params, *_, samples = problem
    settings = dataclasses.replace(SETTINGS, normalization=normalization)
    own = completion_scores(
        architecture,
        params,
        samples.prompts,
        samples.tokens,
        samples.mask,
        temperature=SETTINGS.temperature,
        parts=1,
    )
    samples = samples._replace(old=own, reference=own - 0.5)
    _, found = gradient(architecture, settings, {}, params, samples, 1)
    # Nothing has changed since the samples were drawn.
    np.testing.assert_allclose(found["ratio"], 1.0, rtol=1e-5)
    # k3 of a gap of half a nat.
    np.testing.assert_allclose(found["kl"], np.exp(-0.5) - 0.5, rtol=1e-4)


def test_groups_that_rank_alike_and_the_greedy_list_reach_the_advantages(problem):
    architecture, params, _, _, samples = problem
    gradient = jax.jit(policy_gradient, static_argnums=(0, 1, 5))
    alike = samples._replace(rank=np.ones_like(samples.tokens[..., 0]))
    settings = dataclasses.replace(SETTINGS, kl_coefficient=0.0)
    found, metrics = gradient(architecture, settings, {}, params, alike, 1)
    assert float(metrics["dead_group_share"]) == 1
    # Only malformed lists, which are worse than any rank, are still pushed away from.
    well = samples._replace(
        malformed=np.zeros_like(samples.malformed), rank=alike.rank, rewards=samples.rewards
    )
    found, _ = gradient(architecture, settings, {}, params, well, 1)
    assert max(float(jnp.max(jnp.abs(x))) for x in found.values()) == 0
    greedy = dataclasses.replace(settings, baseline="greedy")
    one, other = (
        gradient(
            architecture, greedy, {}, params,
            samples._replace(greedy=np.full(8, value, np.float32)), 1,
        )[1]["loss"]
        for value in (0.0, 1.0)
    )  # fmt: skip
    assert float(one) != pytest.approx(float(other), abs=1e-3)


def test_scores_do_not_depend_on_the_parts(problem):
    architecture, params, _, _, samples = problem
    arguments = (architecture, params, samples.prompts, samples.tokens, samples.mask)
    four, one = (completion_scores(*arguments, temperature=0.8, parts=n) for n in (4, 1))
    np.testing.assert_allclose(four, one, atol=1e-5)
    for parts in (4, 1):
        whole = (*arguments[:2], packed(problem), *arguments[3:])
        found = completion_scores(*whole, temperature=0.8, parts=parts)
        np.testing.assert_allclose(found, one, atol=1e-5)


def test_parts_hold_as_many_groups_of_every_device():
    assert num_microbatches(32, 500, 4000) == 4
    assert num_microbatches(32, 500, 499) == 32
    assert num_microbatches(32, 500, 499, shares=8) == 4
    assert num_microbatches(6, 500, 1500, shares=4) == 2
