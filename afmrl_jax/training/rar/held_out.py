"""Judging RAR on reward queries that it never trains on, with the same sampling keys each time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.objectives.rewards import Outcome, Reward
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.runtime.distributed import barrier, check_on_first
from afmrl_jax.runtime.files import atomic_path, write_json
from afmrl_jax.runtime.json_files import read_checked
from afmrl_jax.training.annotate import greedy
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.rollout import Rollout, WrittenLists, sample
from afmrl_jax.types import JsonObject

CANDIDATE_K = (1, 2, 3, 5, 10, 20, 50, 100)
BATCH = 32
REPORTED = ("rewards", "recall", "reciprocal_rank")
"""Of a rollout, what is reported of the queries that neither learn nor choose."""

Rollouts = list[Rollout]
"""Of batches of queries."""

REMEDY = "delete the stage's folder to run it again"


@dataclass(frozen=True)
class Start:
    """`start.json`: what the distilled generator reaches."""

    k: int
    means: dict[str, float | None]
    """None is NaN: with a single family a mean has no standard error."""


def cluster_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a mean whose values come in groups (families) that vary together.

    Args:
        values: [n].
        groups: [n], labels.

    Reference: Cameron & Miller, A practitioner's guide to cluster-robust inference, 2015.
    """
    _, inverse = np.unique(groups, return_inverse=True)
    sums = np.bincount(inverse, values - values.mean())
    clusters = len(sums)
    if clusters < 2:
        return float("nan")
    return float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)) / len(values))


class HeldOutEvaluator:
    """Samples lists for the held-out queries and averages their rewards.

    What the distilled generator reaches (`at_start`) is kept on disk, so that a resumed stage
    reports the gain over the same start.
    """

    def __init__(
        self,
        settings: RarConfig,
        architecture: Architecture,
        environment: RarEnvironment,
        reward: Reward,
        seed: int,
        k: int,
        start: np.ndarray,
        at_start: dict[str, float],
    ):
        self._settings = settings
        self._architecture = architecture
        self._environment = environment
        self._reward = reward
        self._seed = seed
        self.k = k
        self._start = start
        self.at_start = at_start

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: RarConfig,
        architecture: Architecture,
        params: Params,
        environment: RarEnvironment,
        reward: Reward,
        seed: int,
    ) -> HeldOutEvaluator:
        """The judge of a stage; measures the start and chooses k unless that was done before."""
        path = folder / "held_out_start"
        if not check_on_first(path.is_dir):
            queries = environment.held_out_queries
            whole = (settings, architecture, params, environment, reward, seed)
            rollouts = write_and_judge(*whole, 1, queries)
            ranks = np.concatenate([x.outcome.rank for x in rollouts])
            bad = np.concatenate([x.malformed for x in rollouts])
            recalls = {k: float(np.mean((ranks <= k) & ~bad)) for k in CANDIDATE_K}
            k = settings.k or min(recalls, key=lambda k: abs(recalls[k] - 0.5))
            rollouts = [_with_k(x, k, settings, environment, reward) for x in rollouts]
            rewards = _per_query(rollouts, "rewards")
            means = _means(rollouts, rewards, environment.families[queries])
            with atomic_path(path) as temporary:
                temporary.mkdir()
                np.save(temporary / "rewards.npy", rewards)
                start = {"k": k, "recall_at": recalls, "means": means}
                write_json(temporary / "start.json", start)
            barrier("the start of reinforcement is measured")
        found, rewards = _read_start(path, len(environment.held_out_queries))
        return cls(
            settings,
            architecture,
            environment,
            reward,
            seed,
            found.k,
            rewards,
            {name: math.nan if x is None else x for name, x in found.means.items()},
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """Held-out means, and the paired gain over the start with its standard error."""
        queries = self._environment.held_out_queries
        rollouts = self._judged(params, queries)
        return _means(rollouts, self._start, self._environment.families[queries])

    @property
    def report_queries(self) -> np.ndarray:
        """Queries that neither learn nor choose; may be empty."""
        return self._environment.report_queries

    def report(self, path: Path, before: Rollouts, after: Rollouts) -> None:
        """Write what the part of the queries says that neither learned nor chose.

        Args:
            path: of the file.
            before: of the generator that the stage started from.
            after: of the one that it passes on.
        """
        queries = self._environment.report_queries
        families = self._environment.families[queries]
        found: JsonObject = {"k": self.k, "queries": len(queries)}
        found["families"] = len(np.unique(families))
        for name in REPORTED:
            one, other = (_per_query(x, name) for x in (before, after))
            found[name.removesuffix("s")] = {
                "before": float(one.mean()),
                "after": float(other.mean()),
                "gain": float((other - one).mean()),
                "gain_error": cluster_error(other - one, families),
            }
        write_json(path, found)

    def reported(self, params: Params) -> Rollouts:
        """Lists for the queries of the third part."""
        return self._judged(params, self._environment.report_queries)

    def _judged(self, params: Params, queries: np.ndarray) -> Rollouts:
        return write_and_judge(
            self._settings,
            self._architecture,
            params,
            self._environment,
            self._reward,
            self._seed,
            self.k,
            queries,
        )


def _with_k(
    rollout: Rollout, k: int, settings: RarConfig, environment: RarEnvironment, reward: Reward
) -> Rollout:
    """The same lists, rewarded with another k."""
    assert rollout.listings is not None
    outcome, penalty = rollout.outcome._replace(k=k), settings.malformed_reward
    found = Rollout.of(outcome, rollout.malformed, rollout.texts, reward, penalty)
    bare = environment.bare_rewards(rollout.listings, reward, settings, k)
    return dataclasses.replace(found, listings=rollout.listings, bare=bare)


def _read_start(folder: Path, queries: int) -> tuple[Start, np.ndarray]:
    """`start.json`, and the first reward of each held-out query."""
    # Earlier versions wrote NaN itself.
    start = read_checked(folder / "start.json", Start, remedy=REMEDY, nan=True)
    path = folder / "rewards.npy"
    try:
        rewards = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if rewards.shape != (queries,) or rewards.dtype.kind != "f":
        raise RunError(f"{path} does not hold the rewards of {queries} queries; {REMEDY}")
    return start, rewards


def _means(rollouts: Rollouts, start: np.ndarray, families: np.ndarray) -> dict[str, float]:
    """Means over the held-out queries, by name of the metric; `start` is their first reward."""
    rewards, outcomes = _per_query(rollouts, "rewards"), [x.outcome for x in rollouts]
    out = {
        "reward": float(rewards.mean()),
        "reward_error": cluster_error(rewards, families),
        "gain": float((rewards - start).mean()),
        "gain_error": cluster_error(rewards - start, families),
        "recall": float(_per_query(rollouts, "recall").mean()),
        "reciprocal_rank": float(_per_query(rollouts, "reciprocal_rank").mean()),
        "pass_at_group": float(np.concatenate([x.recall.max(1) for x in rollouts]).mean()),
        "malformed_share": float(_per_query(rollouts, "malformed").mean()),
        "attribute_count": float(_per_query(outcomes, "attributes").mean()),
        "attribute_tokens": float(_per_query(outcomes, "tokens").mean()),
    }
    well = np.concatenate([~x.malformed for x in rollouts])
    if well.any():
        every = np.concatenate([x.rewards for x in rollouts])
        gains = np.concatenate([x.list_gains for x in rollouts])
        out["well_formed_reward"] = float(every[well].mean())
        out["list_gain"] = float(gains[well].mean())
    return {f"held_out/{name}": value for name, value in out.items()}


def _per_query(batches: Sequence[Rollout | Outcome], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(getattr(x, name), float).mean(1) for x in batches])


def write_and_judge(
    settings: RarConfig,
    architecture: Architecture,
    params: Params,
    environment: RarEnvironment,
    reward: Reward,
    seed: int,
    k: int,
    queries: np.ndarray,
) -> Rollouts:
    """Lists of some queries, written as `settings.judged` says, with the same keys at every call.

    Args:
        settings: of the stage.
        architecture: of the generator.
        params: its weights.
        environment: judges.
        reward: what the lists earn.
        seed: of the run.
        k: of Recall@k.
        queries: numbers of their listings, [n].
    """
    builder, out = environment.writer, []
    tokenizer, budget = builder.tokenizer, builder.text.max_attribute_tokens
    for begin in range(0, len(queries), BATCH):
        chosen = queries[begin : begin + BATCH]
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], BATCH - len(chosen))])
        prompts = environment.prompts([builder.prompt(int(i)) for i in padded])
        with jax.set_mesh(environment.mesh):
            prompts = place_batch(prompts, environment.mesh)
            if settings.judged == "greedy":
                specials = tokenizer.eos_id, tokenizer.pad_id
                grammar = environment.annotation_grammar
                generation = greedy(architecture, params, prompts, budget, *specials, grammar)
            else:
                generation = sample(
                    architecture,
                    params,
                    prompts,
                    jax.random.fold_in(jax.random.key(seed + 1000), begin),
                    settings,
                    group_size=settings.evaluation_samples,
                    max_new_tokens=budget,
                    specials=(tokenizer.eos_id, tokenizer.pad_id),
                    grammar=environment.grammar,
                )
        written = WrittenLists.of(generation, tokenizer)
        if settings.judged == "greedy":
            written = written.mended()
        rollout = environment.judge(prompts, padded, written, reward, settings, k)
        out.append(rollout.rows(np.arange(len(chosen))))
    return out
