"""The average of the weights over the steps: its value, its place, and that it survives a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import OptimizerConfig, RarConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place
from afmrl_jax.training.checkpoint import Checkpointer
from afmrl_jax.training.state import (
    gradient_step,
    initial_state,
    make_optimizer,
    trained_weights,
)

DECAY = 0.8
CONFIG = OptimizerConfig(0.1, warmup_share=0.0, ema_decay=DECAY)
SHAPES = {"norm/scale": (3,), "lm_head": (8, 6)}
TARGETS = [1.0, -2.0, 0.5, 3.0, 0.0, 1.5]


def start():
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(rng.normal(size=x), jnp.float32) for n, x in SHAPES.items()}


def stepper(config=CONFIG):
    optimizer = make_optimizer(config, len(TARGETS))

    @jax.jit
    def step(state, target):
        def loss(params):
            value = sum(jnp.sum((x - target) ** 2) for x in params.values())
            return value, {"loss": value}

        return gradient_step(state, loss, optimizer)[0]

    return initial_state(start(), optimizer), step


def assert_equal(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("steps", [1, 2, len(TARGETS)])
def test_it_is_the_weighted_mean_of_the_weights_after_each_step(steps):
    state, step = stepper()
    seen = []
    for target in TARGETS[:steps]:
        state = step(state, target)
        seen.append({n: np.asarray(x, np.float64) for n, x in state.params.items()})
    shares = DECAY ** np.arange(steps)[::-1]
    expected = {
        n: sum(w * x[n] for w, x in zip(shares, seen, strict=True)) / shares.sum() for n in SHAPES
    }
    found = trained_weights(state, CONFIG)
    assert all(x.dtype == jnp.float32 for x in found.values())
    assert_equal(found, expected, rtol=1e-5, atol=1e-6)


def test_training_itself_is_what_it_is_without():
    averaged, plain = stepper(), stepper(OptimizerConfig(0.1, warmup_share=0.0))
    states = [x[0] for x in (averaged, plain)]
    # Operation by operation: a compiler may round a larger program in another way.
    with jax.disable_jit():
        for target in TARGETS:
            states = [
                step(state, target)
                for state, (_, step) in zip(states, (averaged, plain), strict=True)
            ]
    assert_equal(states[0].params, states[1].params, rtol=0)
    assert_equal(trained_weights(states[1], OptimizerConfig(0.1)), states[1].params, rtol=0)
    # Without, the state is that of older checkpoints.
    assert len(states[1].opt_state) == 2


def test_a_stage_of_no_steps_leaves_what_it_began_with():
    state, _ = stepper()
    assert_equal(trained_weights(state, CONFIG), start(), rtol=0)


def test_a_bad_gradient_leaves_it_as_it_was():
    state, step = stepper()
    good = step(state, 1.0)
    bad = step(step(good, float("nan")), 2.0)
    assert_equal(trained_weights(bad, CONFIG), trained_weights(good, CONFIG), rtol=0)


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (4, 2)])
def test_on_several_devices_it_lies_as_the_weights_do_and_is_the_same(sizes):
    mesh = make_mesh(*sizes)
    alone, step = stepper()
    shared = place(alone, mesh)
    with jax.set_mesh(mesh):
        for target in TARGETS:
            shared = step(shared, target)
    for target in TARGETS:
        alone = step(alone, target)
    average = shared.opt_state[-1].ema
    for name, x in shared.params.items():
        assert average[name].sharding.is_equivalent_to(x.sharding, x.ndim), name
    assert not average["lm_head"].sharding.is_fully_replicated
    assert_equal(
        trained_weights(shared, CONFIG), trained_weights(alone, CONFIG), rtol=1e-5, atol=1e-6
    )


def test_a_checkpoint_brings_it_back_bit_for_bit(tmp_path):
    mesh = make_mesh(2, 1)
    state, step = stepper()
    state = place(state, mesh)
    for target in TARGETS[:3]:
        state = step(state, target)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(3, state)
    # Another start, so that nothing of it can be mistaken for what was saved.
    other, _ = stepper()
    resumed = checkpointer.restore(place(jax.tree.map(jnp.zeros_like, other), mesh))
    checkpointer.close()
    for target in TARGETS[3:]:
        state, resumed = step(state, target), step(resumed, target)
    assert_equal(trained_weights(resumed, CONFIG), trained_weights(state, CONFIG), rtol=0)


def test_reinforcement_has_none():
    with pytest.raises(ConfigError, match=r"rar\.optimizer\.ema_decay must be 0"):
        RarConfig(optimizer=OptimizerConfig(ema_decay=0.9))
