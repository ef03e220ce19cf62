"""Retrieval-aware reinforcement: G is rewarded with the frozen R's retrieval (GRPO)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import RarConfig, RunConfig
from afmrl_jax.data.pipeline import PromptSource
from afmrl_jax.models.functional import Architecture, Params
from afmrl_jax.models.generation import Generation, completion_logprobs
from afmrl_jax.objectives.grpo import dead_groups, group_advantages, grpo_loss
from afmrl_jax.training.loop import LoopConfig, run_loop
from afmrl_jax.training.rar_environment import RarEnvironment, Rollout, sample
from afmrl_jax.training.rar_judge import HeldOutJudge
from afmrl_jax.training.state import gradient_step, initial_state, make_optimiser
from afmrl_jax.training.trainee import Trainee


@partial(jax.jit, static_argnums=(0, 4))
def score(
    architecture: Architecture,
    params: Params,
    prompts: Any,
    generation: Generation,
    temperature: float,
) -> jax.Array:
    """Log-probabilities [q g n] of sampled tokens under other parameters."""
    return completion_logprobs(
        architecture.bind(params),
        prompts,
        generation.tokens,
        generation.mask,
        temperature=temperature,
    )[0]


class RarStep:
    """(state, batch, key) -> (state, metrics): sample, reward, update.

    The reward passes through the host, where texts are checked against the grammar and tokenised
    for R, so this step is a function of three jitted parts and not one.
    """

    def __init__(
        self,
        settings: RarConfig,
        trainee: Trainee,
        reference: Params,
        environment: RarEnvironment,
        optimiser: Any,
        k: int,
    ):
        self._settings = settings
        self._trainee = trainee
        self._reference = reference
        self._environment = environment
        self._k = k
        tokenizer = environment.builder.tokenizer
        self._specials = (tokenizer.eos_id, tokenizer.pad_id)
        self._max_new = environment.builder.text.max_attribute_tokens
        update = partial(_update, trainee.architecture, settings, optimiser)
        self._update = jax.jit(update, donate_argnums=1)

    def __call__(
        self, state: dict[str, Any], batch: dict[str, Any], key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One rollout and its updates."""
        settings, prompts = self._settings, batch["rows"]
        architecture = self._trainee.architecture
        generation = sample(
            architecture,
            self._trainee.whole(state["params"]),
            prompts,
            key,
            settings,
            settings.group_size,
            self._max_new,
            self._specials,
        )
        rollout = self._environment.judge(prompts, batch["index"], generation, settings, self._k)
        reference = score(architecture, self._reference, prompts, generation, settings.temperature)
        arrays = {
            "prompts": prompts,
            "tokens": generation.tokens,
            "mask": generation.mask,
            "old": generation.logprobs,
            "reference": reference,
            "rewards": rollout.rewards,
            "malformed": rollout.malformed,
        }
        for _ in range(settings.updates_per_rollout):
            state, metrics = self._update(self._trainee.frozen, state, arrays)
        # One rollout is one step, however many updates it fed.
        state = state | {"step": state["step"] - (settings.updates_per_rollout - 1)}
        return state, {**metrics, **summarise(rollout)}


def _update(
    architecture: Architecture,
    settings: RarConfig,
    optimiser: Any,
    frozen: Params,
    state: dict[str, Any],
    arrays: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    advantages = group_advantages(arrays["rewards"], arrays["malformed"])

    def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        logprobs, entropy = completion_logprobs(
            architecture.bind({**frozen, **params}),
            arrays["prompts"],
            arrays["tokens"],
            arrays["mask"],
            temperature=settings.temperature,
        )
        value, metrics = grpo_loss(
            logprobs,
            arrays["old"],
            arrays["reference"],
            advantages,
            arrays["mask"],
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_coefficient=settings.kl_coefficient,
        )
        weight = arrays["mask"].astype(jnp.float32)
        mean_entropy = jnp.sum(jax.lax.stop_gradient(entropy) * weight) / jnp.sum(weight)
        return value, {**metrics, "entropy": mean_entropy}

    state, metrics = gradient_step(state, loss, optimiser)
    dead = dead_groups(arrays["rewards"], arrays["malformed"])
    return state, {**metrics, "dead_group_share": jnp.mean(dead.astype(jnp.float32))}


def summarise(rollout: Rollout) -> dict[str, float]:
    """Means over all samples of a rollout."""
    return {
        "reward": float(np.mean(rollout.rewards)),
        "recall": float(np.mean(rollout.recall)),
        "malformed_share": float(np.mean(rollout.malformed)),
        "attribute_count": float(np.mean(rollout.attribute_counts)),
        "attribute_tokens": float(np.mean(rollout.token_counts)),
    }


def train_rar(
    config: RunConfig,
    folder: Path,
    trainee: Trainee,
    environment: RarEnvironment,
) -> Params:
    """Reinforce G.

    Args:
        config: the run.
        folder: the stage's folder.
        trainee: the distilled G; start and KL reference.
        environment: R, its gallery and the reward queries.

    Returns:
        All of G's parameters after the last step.
    """
    settings = config.rar
    architecture, start = trainee.architecture, trainee.whole(trainee.trainable)
    judge = HeldOutJudge.open(folder, settings, architecture, start, environment, config.seed)
    optimiser = make_optimiser(settings.optimiser, settings.steps * settings.updates_per_rollout)
    source = PromptSource(
        environment.builder,
        environment.training_queries,
        length=environment.prompt_length,
        steps=settings.steps,
        batch_size=settings.queries,
        seed=config.seed,
    )
    loop = LoopConfig.of(config, "rar", folder, settings.steps, log_every=1)
    # A copy of what learns, because the update donates the buffers of the state that starts from
    # it. What is frozen is shared.
    reference = trainee.whole(jax.tree.map(jnp.copy, trainee.trainable))
    step = RarStep(settings, trainee, reference, environment, optimiser, judge.k)

    def evaluate(state: dict[str, Any], done: int) -> dict[str, float] | None:
        if done == 0:
            return judge.at_start
        if done % settings.evaluate_every and done != settings.steps:
            return None
        return judge(trainee.whole(state["params"]))

    state = initial_state(trainee.trainable, optimiser)
    return trainee.whole(run_loop(loop, state, source, step, evaluate)["params"])
