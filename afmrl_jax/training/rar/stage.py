"""Retrieval-aware reinforcement (GRPO): the frozen embedder's retrieval rewards the generator."""

from __future__ import annotations

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from afmrl_jax.config import RarConfig, RunConfig
from afmrl_jax.data.batching.row_packing import Prompts, pictured, with_pictures
from afmrl_jax.data.sources.batches import PromptBatch
from afmrl_jax.data.sources.prompts import PromptSource
from afmrl_jax.models.architecture import Params
from afmrl_jax.models.huggingface.safetensors import TensorToWrite, stored_tensors, write_tensors
from afmrl_jax.objectives.rewards import Reward, find_reward
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import place_batch, shardings
from afmrl_jax.runtime.distributed import barrier, check_on_first, to_devices, to_host
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
from afmrl_jax.training.state import TrainState, initial_state, make_optimizer, scalars

REPORT = "report.json"
"""What the queries of the part `report` say, in the stage's folder."""
BEST = "params.safetensors"
"""What learns of the best generator, in the stage's folder `best`."""


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
        self._tokenizer = environment.builder.tokenizer
        self._specials = (self._tokenizer.eos_id, self._tokenizer.pad_id)
        self._max_new = environment.builder.text.max_attribute_tokens
        self._update = jax.jit(
            partial(update, trainee.architecture, settings, optimizer),
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
        greedy = None
        if settings.baseline == "greedy":
            grammar = self._environment.annotation_grammar
            found = greedily(architecture, policy, prompts, self._max_new, *self._specials, grammar)
            greedy = WrittenLists.of(found, self._tokenizer).mended()
        marks.append(time.perf_counter())
        index = to_host(batch.queries)
        written = WrittenLists.of(generation, self._tokenizer)
        rollout = self._environment.judge(
            seen, index, written, self._reward, settings, self._k, greedy
        )
        marks.append(time.perf_counter())
        figures = rollout.figures() | {"live_groups": int(rollout.live(settings).sum())}
        sampled = rollout.rewards.size
        taught = rollout
        if settings.candidates is not None:
            chosen = live_first(rollout.live(settings), settings.queries)
            taught, generation = rollout.rows(chosen), jax.tree.map(lambda x: x[chosen], generation)
            prompts = self._prompts(index[chosen], policy)
        # What lies after the longest list need not be computed.
        length = trimmed_length(generation.mask)
        cut = [x[..., :length] for x in (generation.tokens, generation.mask, generation.logprobs)]
        tokens, mask, old = place_batch(cut, self._mesh)
        row_tokens = self._environment.prompts.length + settings.group_size * length
        rows = len(taught.rewards)
        shares = self._mesh.shape[AXES[0]]
        parts = num_microbatches(rows, row_tokens, settings.chunk_tokens, shares)
        reference = completion_scores(
            architecture,
            self._reference,
            prompts,
            tokens,
            mask,
            temperature=settings.temperature,
            parts=parts,
        )
        samples = Samples(prompts, tokens, mask, old, reference, *self._worth(taught, key))
        for _ in range(settings.updates_per_rollout):
            state, metrics = self._update(self._trainee.frozen, state, samples, parts=parts)
        # One rollout is one step, however many updates it fed.
        state = state._replace(step=state.step - (settings.updates_per_rollout - 1))
        step = int(state.step)
        marks.append(time.perf_counter())
        self._samples.write(step, index, rollout)
        return state, {**metrics, **figures, **_speed(marks, sampled)}

    def _prompts(self, index: np.ndarray, policy: Params) -> Prompts:
        """Prompts of some queries of a step, read once more: rows of a batch share its pictures."""
        builder = self._environment.builder
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
        All of the generator's parameters where its held-out reward was highest, the start included.
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
    health = RarMonitor(folder, settings.patience)
    galleries = None
    if settings.refresh_gallery is not None:
        every = settings.refresh_gallery
        galleries = PolicyGalleries(
            folder, every, environment, trainee, loop.mesh, packed=config.packed
        )

    def deployed(params: Params, step: int) -> AbstractContextManager[None]:
        """The gallery that a generator is judged with."""
        return nullcontext() if galleries is None else galleries.shown(params, step)

    lines = read_metrics(folder / "metrics.jsonl")

    def step(state: TrainState, batch: PromptBatch, key: jax.Array) -> tuple[TrainState, Metrics]:
        state, metrics = rar_step(state, batch, key)
        done = int(state.step)
        # A resumed stage repeats the steps after its checkpoint.
        lines[:] = [x for x in lines if x["step"] < done]
        found = scalars(metrics)
        lines.append({"step": done} | found)
        return state, {**metrics, **health.watch(lines)}

    def evaluate(state: TrainState, done: int) -> dict[str, float] | None:
        if done and done % settings.evaluate_every and done != settings.steps:
            return None
        found = judge.at_start
        if done:
            with deployed(state.params, done):
                found = judge(trainee.whole(state.params))
        chosen_by = found[f"held_out/{settings.choose_by}"]
        health.evaluated(done, chosen_by, partial(_save, state.params))
        if not done:
            lines[:] = [{"step": 0}]
        lines[-1] |= found
        return {**found, **health.watch(lines)}

    state = initial_state(trainee.trainable, optimizer)
    refresh = None if galleries is None else galleries.refresh()
    state = run_loop(
        loop, state, source, step, evaluate, refresh, stop=lambda: health.should_stop(lines)
    )
    params, best_step = state.params, int(state.step)
    if health.best is not None:
        barrier("the best parameters are written")
        params, best_step = _load(folder / "best", params, loop.mesh), health.best.step
    told = folder / REPORT
    if len(environment.report_queries) and not check_on_first(told.is_file):
        with deployed(trainee.trainable, 0):
            before = judge.reported(start)
        with deployed(params, best_step):
            judge.report(told, before, judge.reported(trainee.whole(params)))
    return trainee.whole(params)


def _save(params: Params, folder: Path) -> None:
    """Write what learns as it is; the layout is that of the parameters, not of a hub's file."""
    tensors = [
        TensorToWrite(name, x.shape, np.dtype(x.dtype), partial(to_host, x))
        for name, x in params.items()
    ]
    write_tensors(folder / BEST, tensors)


def _load(folder: Path, like: Params, mesh: Mesh) -> Params:
    stored = {name: x.open() for name, x in stored_tensors(folder / BEST).items()}
    found: Params = to_devices({name: stored[name] for name in like}, shardings(like, mesh))
    return found
