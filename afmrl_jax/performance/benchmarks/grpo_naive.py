"""GRPO's update as usually done: one row per sample, each with its own prompt and picture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.shared_prefix import unpacked
from afmrl_jax.objectives.grpo import group_advantages, grpo_loss
from afmrl_jax.performance.benchmarks.workload import MERGE
from afmrl_jax.training.rar.policy_gradient import Samples
from afmrl_jax.types import AnyArray


def repeated(samples: Samples) -> VLBatch:
    """Rows [q * g, t + n] of prompts without padding, each followed by one sample.

    Every bin holds one picture, so pictures are repeated along with their rows.
    """
    prompts, tokens, mask = (
        unpacked(samples.prompts),
        np.asarray(samples.tokens),
        np.asarray(samples.mask),
    )
    group, length = tokens.shape[1:]

    def repeat(x: AnyArray) -> np.ndarray:
        return np.repeat(np.asarray(x), group, axis=0)

    last = np.asarray(prompts.positions).max((1, 2))
    after = np.repeat(last, group)[:, None] + 1 + np.arange(length)
    after = np.repeat(after[:, None], 3, axis=1).astype(np.int32)
    assert prompts.patches is not None
    assert len(prompts.patches) == len(prompts.tokens)
    seen = prompts.patches.shape[1] // MERGE**2
    return prompts._replace(
        tokens=np.concatenate([repeat(prompts.tokens), tokens.reshape(-1, length)], 1),
        token_mask=np.concatenate([repeat(prompts.token_mask), mask.reshape(-1, length)], 1),
        positions=np.concatenate([repeat(prompts.positions), after], 2),
        patches=repeat(prompts.patches),
        patch_segment=repeat(prompts.patch_segment),
        patch_position=repeat(prompts.patch_position),
        normalization=jax.tree.map(repeat, prompts.normalization),
        visual_start=(seen * np.arange(len(after))).astype(np.int32),
    )


def naive_gradient(
    architecture: Architecture,
    settings: RarConfig,
    params: Params,
    rows: VLBatch,
    samples: Samples,
) -> tuple[Params, jax.Array]:
    """Gradient and loss over `repeated` rows, with the logits of all sample tokens at once."""
    shape = samples.tokens.shape
    advantages = group_advantages(samples.rewards, samples.malformed, baseline=settings.baseline)

    def loss(params: Params) -> jax.Array:
        model = architecture.bind(params)
        # The hidden state of a token predicts the next one.
        hidden = model(rows)[:, -shape[2] - 1 : -1]
        logprobs = jax.nn.log_softmax(model.logits(hidden) / settings.temperature)
        flat = jnp.asarray(samples.tokens).reshape(-1, shape[2], 1)
        chosen = jnp.take_along_axis(logprobs, flat, axis=-1).reshape(shape)
        return grpo_loss(
            chosen,
            samples.old,
            samples.reference,
            advantages,
            samples.mask,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_coefficient=settings.kl_coefficient,
        )[0]

    value, gradient = jax.value_and_grad(loss)(params)
    return gradient, value
