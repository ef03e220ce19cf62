"""Retrieval-aware reinforcement (GRPO): the frozen embedder's retrieval rewards the generator."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from afmrl_jax.config import RarConfig, RunConfig
from afmrl_jax.data.batching.row_packing import Prompts, pictured, with_pictures
from afmrl_jax.data.batching.tail_packing import packed_tails
from afmrl_jax.data.sources.batches import PromptBatch
from afmrl_jax.data.sources.prompts import PromptSource
from afmrl_jax.models.architecture import Params
from afmrl_jax.models.generation import Generation
from afmrl_jax.objectives.rewards import Reward, find_reward
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.runtime.metrics_log import read_metrics
from afmrl_jax.training.annotate import greedy as greedily
from afmrl_jax.training.encode_batch import tower_learns
from afmrl_jax.training.loop import LoopConfig, Metrics, run_loop
from afmrl_jax.training.partition import Partition
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.galleries import PolicyGalleries
from afmrl_jax.training.rar.held_out import HeldOutEvaluator
from afmrl_jax.training.rar.monitor import RarMonitor
from afmrl_jax.training.rar.policy_gradient import (
    Samples,
    completion_scores,
    num_microbatches,
    update,
)
from afmrl_jax.training.rar.rollout import (
    Rollout,
    WrittenLists,
    encode_images,
    sample,
    trimmed_length,
)
from afmrl_jax.training.rar.sample_log import SampleLog
from afmrl_jax.training.rar.watch import Watch
from afmrl_jax.training.state import TrainState, initial_state, make_optimizer

PACKED_SHARE = 0.9
"""Lists share rows if that takes at most this share of the places."""


class RarStep:
    """(state, batch, key) -> (state, metrics): sample, reward, update.

    The reward passes through the host, where texts are checked against the grammar and tokenised
    for R, so this step is a function of three jitted parts and not one.
    """

    def __init__(
        self,
        settings: RarConfig,
        trainee: Partition,
        reference: Params,
        environment: RarEnvironment,
        reward: Reward,
        optimizer: optax.GradientTransformation,
        k: int,
        mesh: Mesh,
        samples: SampleLog,
    ):
        self._settings = settings
        self._trainee = trainee
        self._reference = reference
        self._tower_learns = tower_learns(trainee.trainable)
        self._environment = environment
        self._reward = reward
        self._k = k
        self._mesh = mesh
        self._samples = samples
        self._tokenizer = environment.writer.tokenizer
        self._specials = (self._tokenizer.eos_id, self._tokenizer.pad_id)
        self._max_new = environment.writer.text.max_attribute_tokens
        self._update = jax.jit(
            partial(update, trainee.architecture, settings, optimizer, budget=self._max_new),
            static_argnames="parts",
            donate_argnames="state",
        )

    def __call__(
        self, state: TrainState, batch: PromptBatch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One rollout and its updates."""
        settings, seen = self._settings, batch.rows
        marks = [time.perf_counter()]
        architecture, policy = self._trainee.architecture, self._trainee.whole(state.params)
        prompts = seen
        if not self._tower_learns:
            # Policy and reference see the same: once for sampling, reference and update.
            visual = encode_images(architecture, policy, seen)
            prompts = with_pictures(seen, pictured(seen)._replace(visual=visual))
        generation = sample(
            architecture,
            policy,
            prompts,
            key,
            settings,
            group_size=settings.group_size,
            max_new_tokens=self._max_new,
            specials=self._specials,
            grammar=self._environment.grammar,
        )
        generation = to_host(generation)
        greedy = self._greedy(policy, prompts) if settings.baseline == "greedy" else None
        marks.append(time.perf_counter())
        index = to_host(batch.queries)
        written = WrittenLists.of(generation, self._tokenizer)
        rollout = self._environment.judge(
            seen, index, written, self._reward, settings, self._k, greedy
        )
        marks.append(time.perf_counter())
        live, taught = rollout.live(settings), rollout
        if settings.candidates is not None:
            chosen = live_first(live, settings.queries)
            taught, generation = rollout.rows(chosen), jax.tree.map(lambda x: x[chosen], generation)
            prompts = self._prompts(index[chosen], policy)
        read, parts = self._read(generation)
        tokens, mask, old, tails = place_batch(read, self._mesh)
        reference = completion_scores(
            architecture,
            self._reference,
            prompts,
            tokens,
            mask,
            tails,
            temperature=settings.temperature,
            parts=parts,
        )
        samples = Samples(prompts, tokens, mask, old, reference, *self._worth(taught, key))
        samples = samples._replace(tails=tails)
        for _ in range(settings.updates_per_rollout):
            state, metrics = self._update(self._trainee.frozen, state, samples, parts=parts)
        # One rollout is one step, however many updates it fed.
        state = state._replace(step=state.step - (settings.updates_per_rollout - 1))
        step = int(state.step)
        marks.append(time.perf_counter())
        self._samples.write(step, index, rollout)
        speed = _speed(marks, rollout.rewards.size)
        return state, {**metrics, **rollout.figures(), "live_groups": int(live.sum()), **speed}

    def _read(self, generation: Generation) -> tuple[tuple, int]:
        """Tokens, mask, log-probabilities and rows of the samples, and in how many parts.

        What lies after the longest list need not be computed; on one device lists also share rows
        where that leaves out more.
        """
        settings, mask = self._settings, np.asarray(generation.mask)
        cut = generation.tokens, mask, generation.logprobs
        length, shares = trimmed_length(mask), self._mesh.shape[AXES[0]]
        count, group, _ = mask.shape
        row_tokens = self._environment.prompts.length + group * length
        parts = num_microbatches(count, row_tokens, settings.chunk_tokens, shares)
        if self._mesh.size == 1:
            tails = packed_tails(mask.sum(-1), self._max_new, parts)
            if tails.segment.size <= PACKED_SHARE * count * group * length:
                return (*cut, tails), parts
        return (*(x[..., :length] for x in cut), None), parts

    def _greedy(self, policy: Params, prompts: Prompts) -> WrittenLists:
        """What would be deployed: one list of each query."""
        grammar = self._environment.annotation_grammar
        architecture = self._trainee.architecture
        found = greedily(architecture, policy, prompts, self._max_new, *self._specials, grammar)
        return WrittenLists.of(found, self._tokenizer).mended()

    def _prompts(self, index: np.ndarray, policy: Params) -> Prompts:
        """Prompts of some queries of a step, read once more: rows of a batch share its pictures."""
        builder = self._environment.writer
        rows = [builder.prompt(int(i)) for i in index]
        prompts = place_batch(self._environment.prompts(rows), self._mesh)
        if self._tower_learns:
            return prompts
        visual = encode_images(self._trainee.architecture, policy, prompts)
        return with_pictures(prompts, pictured(prompts)._replace(visual=visual))

    def _worth(self, rollout: Rollout, key: jax.Array) -> tuple:
        """Rewards, malformed, and where the settings need them greedy rewards and ranks."""
        settings, rewards = self._settings, rollout.rewards
        if settings.permute_rewards:
            words = np.asarray(jax.random.key_data(key)).tolist()
            rewards = rollout.permuted(np.random.default_rng(words))
        rank = rollout.outcome.rank if settings.live_by == "rank" else None
        return place_batch((rewards, rollout.malformed, rollout.greedy, rank), self._mesh)


def live_first(live: np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` groups, in order: of those that teach the first ones, then of the others.

    Example:
        >>> live_first(np.array([False, True, False, True, True]), 4).tolist()
        [0, 1, 3, 4]
    """
    return np.sort(np.argsort(~live, kind="stable")[:count])


def _speed(marks: list[float], samples: int) -> dict[str, float]:
    """Seconds of the phases between four marks, and samples a second through all."""
    names = ("seconds_sampling", "seconds_reward", "seconds_update")
    spans = {name: after - at for name, at, after in zip(names, marks, marks[1:], strict=False)}
    spans["samples_per_second"] = samples / (marks[-1] - marks[0])
    return {name: round(value, 5) for name, value in spans.items()}


def train_rar(
    config: RunConfig,
    folder: Path,
    trainee: Partition,
    environment: RarEnvironment,
) -> Params:
    """Reinforce the generator.

    Args:
        config: the run.
        folder: the stage's folder.
        trainee: the distilled generator; start and KL reference.
        environment: the embedder, its gallery and the reward queries.

    Returns:
        All of the generator's parameters where the held-out figure of `choose_by` was highest, the
        start included.
    """
    settings = config.rar
    architecture, start = trainee.architecture, trainee.whole(trainee.trainable)
    reward = find_reward(settings.reward, settings)
    judge = HeldOutEvaluator.open(
        folder, settings, architecture, start, environment, reward, config.seed
    )
    optimizer = make_optimizer(settings.optimizer, settings.steps * settings.updates_per_rollout)
    source = PromptSource(
        environment.prompts,
        environment.training_queries,
        steps=settings.steps,
        batch_size=settings.candidates or settings.queries,
        seed=config.seed,
    )
    loop = LoopConfig.of(config, "rar", folder, settings.steps, log_every=1)
    # Its loss has no scale.
    loop = dataclasses.replace(loop, guard=dataclasses.replace(loop.guard, explosion=None))
    # A copy of what learns, because the update donates the buffers of the state that starts from
    # it; in the type that scoring computes in, half the memory where that is bfloat16. What is
    # frozen is shared.
    reference = trainee.whole(architecture.as_computed(trainee.trainable))
    samples = SampleLog(folder, settings.samples_every, environment.builder)
    rar_step = RarStep(
        settings, trainee, reference, environment, reward, optimizer, judge.k, loop.mesh, samples
    )
    galleries = None
    if settings.refresh_gallery is not None:
        every = settings.refresh_gallery
        galleries = PolicyGalleries(
            folder,
            every,
            environment,
            trainee,
            loop.mesh,
            packed=config.packed,
            met=settings.gallery_lists,
            temperature=settings.temperature,
            seed=config.seed,
        )
    health, lines = RarMonitor(folder, settings.patience), read_metrics(folder / "metrics.jsonl")
    watch = Watch(settings, folder, trainee, judge, health, galleries, lines)
    before = watch.reported_at_start()
    state = run_loop(
        loop,
        initial_state(trainee.trainable, optimizer),
        source,
        watch.stepping(rar_step),
        watch.evaluate,
        None if galleries is None else galleries.refresh(),
        watch.should_stop,
    )
    return trainee.whole(watch.best(state, loop.mesh, before))
