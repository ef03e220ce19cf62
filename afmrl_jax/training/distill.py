"""Distillation: G learns to write the oracle's attribute lists (stage 1 of AFMRL's generator)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax

from afmrl_jax.config import RunConfig
from afmrl_jax.data.pipeline import DistillSource, RowBuilder
from afmrl_jax.models.functional import Architecture, Params
from afmrl_jax.objectives.sft import sft_loss
from afmrl_jax.training.loop import LoopConfig, run_loop
from afmrl_jax.training.state import gradient_step, initial_state, make_optimiser


def train_distill(
    config: RunConfig,
    folder: Path,
    architecture: Architecture,
    builder: RowBuilder,
    oracle: list[str],
) -> Params:
    """Train G from random weights.

    Args:
        config: the run.
        folder: the stage's folder.
        architecture: G.
        builder: rows over the listings of the `distill` split.
        oracle: the attribute text to write for each of them.

    Returns:
        G's parameters.
    """
    settings = config.distill
    optimiser = make_optimiser(settings.optimiser, settings.steps)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: dict[str, Any], batch: dict[str, Any], key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        del key  # Nothing random: dropout-free, one epoch order per seed.

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = architecture.bind(params)
            hidden = model(batch["rows"])
            return sft_loss(model.logits(hidden), batch["targets"], batch["mask"])

        return gradient_step(state, loss, optimiser)

    source = DistillSource(
        builder,
        oracle,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=config.seed,
    )
    loop = LoopConfig.of(config, "distill", folder, settings.steps)
    state = initial_state(architecture.init(config.seed + 1), optimiser)
    return run_loop(loop, state, source, step)["params"]
