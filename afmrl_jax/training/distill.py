"""Distillation: the generator learns the oracle's attribute lists (its stage 1 in AFMRL)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from afmrl_jax.config import DistillConfig, RunConfig
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.sources.batches import DistillBatch
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.embedder import hidden_at, hidden_in_bins, unit
from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.sft import sft_loss_of_hidden
from afmrl_jax.training.loop import FrozenStepFunction, LoopConfig, run_loop
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.state import (
    TrainState,
    gradient_step,
    initial_state,
    make_optimizer,
    trained_weights,
)


def train_distill(
    config: RunConfig,
    folder: Path,
    trainee: Partition,
    builder: RowBuilder,
    oracle: list[str],
) -> Params:
    """Train the generator to write the oracle's lists.

    Args:
        config: the run.
        folder: the stage's folder.
        trainee: the generator, with the parameters to start from.
        builder: rows over the listings of the `distill` split.
        oracle: the attribute text to write for each of them.

    Returns:
        All of the generator's parameters; those that learn averaged with `optimizer.ema_decay`.
    """
    settings = config.distill
    optimizer = make_optimizer(settings.optimizer, settings.steps)

    loop = LoopConfig.of(config, "distill", folder, settings.steps)
    source = DistillSource(
        builder,
        oracle,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=config.seed,
        structure_weight=settings.structure_weight,
        swap_share=settings.swap_share,
        title_dropout=settings.title_dropout,
        picture_dropout=settings.picture_dropout,
        packed=config.packed,
        shares=loop.mesh.shape["data"],
    )
    step = make_distill_step(trainee.architecture, settings, optimizer)
    state = initial_state(trainee.trainable, optimizer)
    state = run_loop(loop, state, source, partial(step, trainee.frozen))
    return trainee.whole(trained_weights(state, settings.optimizer))


def make_distill_step(
    architecture: Architecture, settings: DistillConfig, optimizer: optax.GradientTransformation
) -> FrozenStepFunction:
    """The jitted step (frozen, state, batch, key) -> (state, metrics) of distillation."""

    @partial(jax.jit, donate_argnums=1)
    def step(
        frozen: Params, state: TrainState, batch: DistillBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del key  # Nothing random: the batch decides all.

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = architecture.bind({**frozen, **params})
            rows = batch.rows
            packed = isinstance(rows, PackedRows)
            hidden = model.packed(rows) if isinstance(rows, PackedRows) else model(rows)
            weights = batch.weights
            value, metrics = sft_loss_of_hidden(
                hidden,
                model.logits,
                batch.targets,
                weights > 0,
                weights,
                at_once=settings.logits_at_once,
            )
            if settings.contrastive_weight:
                own = hidden_in_bins if packed else hidden_at
                vectors = unit(own(hidden, batch.prompt_last))
                count = batch.products.shape[0]
                nothing = jnp.zeros((count, count), jnp.float32)
                contrast, _ = agcl_loss(
                    vectors[:count], vectors[count:], nothing, batch.products, gamma=0.0
                )
                value = value + settings.contrastive_weight * contrast
                metrics = metrics | {"contrastive_loss": contrast}
            return value, metrics

        return gradient_step(state, loss, optimizer)

    return step
