"""Training state: a tuple of arrays and of trees of them, and the pure optimizer step on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afmrl_jax.config import OptimizerConfig
from afmrl_jax.models.architecture import Params
from afmrl_jax.parallel.param_paths import is_matrix
from afmrl_jax.types import AnyArray, Bool, Int

HALTED = "halted"
"""Metric, as the state's entry of this name."""


class TrainState(NamedTuple):
    """What a step of training takes and gives.

    Checkpoints name the fields (`training.checkpoint`), and the sharding table knows the names.
    They stand in the order of a dictionary's keys, which the state once was: leaves in the same
    order make the same programs.
    """

    halted: Bool[AnyArray, ""]
    """A gradient was no number, and nothing is taken over any more."""
    opt_state: optax.OptState
    params: Params
    """Those that learn."""
    step: Int[AnyArray, ""]
    """How many steps are finished."""


def scalars(metrics: Mapping[str, AnyArray]) -> dict[str, float]:
    """The metrics of a step on the host, for a log; reading them waits for the device."""
    return {name: float(np.asarray(x)) for name, x in metrics.items() if name != HALTED}


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to `final_share` of the peak."""
    warmup = max(1, round(config.warmup_share * steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / warmup,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_share,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with gradient clipping; weight decay touches matrices only.

    With `ema_decay` its state also holds the average of the weights; see `trained_weights`.
    """
    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, steps),
            b2=0.98,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: is_matrix(name) for name in params},
        ),
    ]
    if config.ema_decay:
        parts.append(_average_of_weights(config.ema_decay))
    return optax.chain(*parts)


def _average_of_weights(decay: float) -> optax.GradientTransformation:
    """The last part of a chain: follows the weights that the updates lead to, and changes nothing.

    As a part of the optimizer, the average is saved, restored, laid out on the mesh and left alone
    after a bad gradient as the moments are.
    """
    ema = optax.ema(decay, accumulator_dtype=jnp.float32)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert params is not None
        _, state = ema.update(optax.apply_updates(params, updates), state)
        return updates, state

    return optax.GradientTransformation(ema.init, update)


def trained_weights(state: TrainState, config: OptimizerConfig) -> Params:
    """What a stage leaves of the weights that learn: their average, or the last step's.

    The average over the steps t = 1 to n has weights proportional to decay^(n - t): `optax.ema`
    begins at zero, and the division by 1 - decay^n takes that out again.

    Args:
        state: after the last step.
        config: what its optimizer was made of.
    """
    if not config.ema_decay or not int(state.step):
        return state.params
    average = state.opt_state[-1]
    assert isinstance(average, optax.EmaState)
    with jax.numpy_dtype_promotion("standard"):
        found: Params = optax.tree.bias_correction(average.ema, config.ema_decay, average.count)
    return found


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """State of a stage: parameters, optimizer state, the number of finished steps, and whether a
    step was met whose gradient is no number.
    """
    return TrainState(
        halted=jnp.zeros((), bool),
        opt_state=optimizer.init(params),
        params=params,
        step=jnp.zeros((), jnp.int32),
    )


def gradient_step(
    state: TrainState,
    loss: Callable[[Params], tuple[jax.Array, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on `loss(params) -> (value, metrics)`; pure, for use inside jit.

    `params` are those that learn; what is frozen reaches `loss` another way, and has no gradient.
    """
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    return apply_gradients(state, gradients, {"loss": value, **metrics}, optimizer)


def apply_gradients(
    state: TrainState,
    gradients: Params,
    metrics: dict[str, jax.Array],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state one optimizer step later, and the metrics with the gradient's norm; pure.

    From a gradient that is not finite on, the state stays as it was before it, so that the last
    good one is still there when the host hears of it some steps later.
    """
    # Optax raises floats to integer powers; the rest of the step holds under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(gradients)
    good = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"]) & ~state.halted
    new = (opt_state, params, state.step + 1)
    old = (state.opt_state, state.params, state.step)
    kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    return TrainState(~good, *kept), {**metrics, "gradient_norm": norm, HALTED: ~good}
