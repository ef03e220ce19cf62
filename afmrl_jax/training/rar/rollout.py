"""Lists sampled from the generator, and what they earned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes.text_format import parse_attributes, salvage_attributes
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts, pictured
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.objectives import rewards as objectives
from afmrl_jax.objectives.grpo import dead_groups
from afmrl_jax.objectives.rewards import Outcome, Reward
from afmrl_jax.runtime.distributed import to_host
from afmrl_jax.training.annotate import completion_texts
from afmrl_jax.types import Bool, Float, Int, JsonObject

TAIL_STEP = 16
"""Lengths of continuations are rounded up to multiples of it, so that few shapes are compiled."""


def trimmed_length(mask: np.ndarray) -> int:
    """Places that continuations need, of bool [... n]: the longest, rounded up, at most n."""
    longest = int(mask.sum(-1).max(initial=1))
    return min(-(-longest // TAIL_STEP) * TAIL_STEP, mask.shape[-1])


@dataclass(frozen=True)
class WrittenLists:
    """Texts of a batch of queries, as many for each."""

    texts: list[str]
    """q * g, group by group."""
    malformed: Bool[np.ndarray, "q g"]
    tokens: Int[np.ndarray, "q g"]
    """Tokens written, the end included."""

    @classmethod
    def of(cls, generation: Generation, tokenizer: Any) -> WrittenLists:
        """What was generated, as it stands."""
        generation = to_host(generation)
        texts, malformed = completion_texts(generation, tokenizer)
        shape = generation.finished.shape
        tokens = np.asarray(generation.mask.sum(-1), np.int32)
        return cls(texts, np.asarray(malformed).reshape(shape), tokens)

    def mended(self) -> WrittenLists:
        """As a stage that annotates keeps them: of a malformed list what can be read of it."""
        bad = self.malformed.ravel().tolist()
        texts = [salvage_attributes(t) if x else t for t, x in zip(self.texts, bad, strict=True)]
        return replace(self, texts=texts, malformed=np.zeros_like(self.malformed))

    @property
    def attributes(self) -> Int[np.ndarray, "q g"]:
        """Pairs of each list, 0 where it is malformed or empty."""
        bad = self.malformed.ravel().tolist()
        counts = [
            0 if x or not t else len(parse_attributes(t))
            for t, x in zip(self.texts, bad, strict=True)
        ]
        return np.array(counts, np.int32).reshape(self.malformed.shape)

    def beside(self, other: WrittenLists) -> WrittenLists:
        """Each query's texts, followed by its texts of `other`."""
        rows = [
            x.texts[row * x.malformed.shape[1] : (row + 1) * x.malformed.shape[1]]
            for row in range(len(self.malformed))
            for x in (self, other)
        ]
        return WrittenLists(
            [text for row in rows for text in row],
            np.concatenate([self.malformed, other.malformed], 1),
            np.concatenate([self.tokens, other.tokens], 1),
        )


@dataclass(frozen=True)
class Rollout:
    """A group of samples for each query, and what they were worth; all [q g] but where said."""

    rewards: Float[np.ndarray, "q g"]
    recall: Float[np.ndarray, "q g"]
    outcome: Outcome
    """How the embedder found with them, NumPy arrays."""
    malformed: Bool[np.ndarray, "q g"]
    texts: list[str]
    """q * g, group by group."""
    listings: Int[np.ndarray, " q"] | None = None
    """Of the queries, by number; None where they are of no account."""
    bare: Float[np.ndarray, " q"] | None = None
    """Reward of each query without any list; None where it was not asked for."""
    greedy: Float[np.ndarray, " q"] | None = None
    """Reward of each query's greedy list, mended; None where it was not asked for."""

    @classmethod
    def of(
        cls,
        outcome: Outcome,
        malformed: np.ndarray,
        texts: list[str],
        reward: Reward,
        penalty: float,
    ) -> Rollout:
        """Samples with their reward, malformed ones at `penalty`, and with their Recall@k."""
        values = objectives.rewarded(reward, outcome, jnp.asarray(malformed), penalty)
        recall = np.where(malformed, 0.0, np.asarray(objectives.recall(outcome)))
        return cls(np.asarray(values), recall.astype(np.float32), outcome, malformed, texts)

    def first(self, size: int, *, greedy: np.ndarray) -> Rollout:
        """The first `size` samples of each group, and the reward of the greedy list, [q]."""
        outcome, whole = self.outcome, self.rewards.shape[1]

        def cut(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else np.asarray(x)[:, :size]

        parts = ("rank", "ranks", "margin", "tokens", "attributes")
        arrays: JsonObject = {x: cut(getattr(outcome, x)) for x in parts}
        return Rollout(
            self.rewards[:, :size],
            self.recall[:, :size],
            outcome._replace(**arrays),
            self.malformed[:, :size],
            [x for n, x in enumerate(self.texts) if n % whole < size],
            greedy=greedy,
        )

    def live(self, settings: RarConfig) -> Bool[np.ndarray, " q"]:
        """Whether a group teaches; as `policy_gradient` has it, on this host."""
        rewards, malformed = jnp.asarray(self.rewards), jnp.asarray(self.malformed)
        greedy = None if self.greedy is None else jnp.asarray(self.greedy)
        dead = dead_groups(rewards, malformed, greedy)
        if settings.live_by == "rank":
            rank = jnp.asarray(self.outcome.rank, jnp.float32)
            dead |= dead_groups(rank, malformed)
        return ~np.asarray(dead)

    def permuted(self, rng: np.random.Generator) -> Float[np.ndarray, "q g"]:
        """The rewards, those of each group's well-formed lists in random order."""
        out = self.rewards.copy()
        for row, bad in zip(out, self.malformed, strict=True):
            row[~bad] = rng.permutation(row[~bad])
        return out

    def figures(self) -> dict[str, float]:
        """What a step says of its samples; see `docs/reinforcement.md`.

        Figures of well-formed lists are missing where there is none.
        """
        outcome, well = self.outcome, ~self.malformed
        out = {
            "reward": float(np.mean(self.rewards)),
            "recall": float(np.mean(self.recall)),
            "reciprocal_rank": float(np.mean(self.reciprocal_rank)),
            "pass_at_group": float(np.mean(self.recall.max(1))),
            "malformed_share": float(np.mean(self.malformed)),
            "attribute_count": float(np.mean(outcome.attributes)),
            "attribute_tokens": float(np.mean(outcome.tokens)),
        }
        if outcome.margin is not None:
            out["margin"] = float(np.mean(outcome.margin))
        if self.greedy is not None:
            out["greedy_reward"] = float(np.mean(self.greedy))
        if well.any():
            out["well_formed_reward"] = float(np.mean(self.rewards[well]))
            some = well.any(1)
            best = np.where(well, self.rewards, -np.inf).max(1)[some]
            mean = np.where(well, self.rewards, 0.0).sum(1)[some] / well.sum(1)[some]
            out["group_room"] = float(np.mean(best - mean))
            if self.bare is not None:
                out["list_gain"] = float(np.mean(self.list_gains[well]))
        return out

    @property
    def list_gains(self) -> Float[np.ndarray, "q g"]:
        """Reward of each list less that of its query without any."""
        assert self.bare is not None
        return self.rewards - self.bare[:, None]

    @property
    def reciprocal_rank(self) -> Float[np.ndarray, "q g"]:
        """0 where malformed."""
        found = np.asarray(objectives.reciprocal_rank(self.outcome))
        return np.where(self.malformed, 0.0, found).astype(np.float32)

    def rows(self, chosen: np.ndarray) -> Rollout:
        """Those of some queries, by number."""
        outcome, size = self.outcome, self.rewards.shape[1]
        arrays: JsonObject = {
            n: x[chosen] for n, x in outcome._asdict().items() if isinstance(x, np.ndarray)
        }
        return Rollout(
            self.rewards[chosen],
            self.recall[chosen],
            outcome._replace(**arrays),
            self.malformed[chosen],
            [self.texts[int(row) * size + n] for row in chosen for n in range(size)],
            None if self.listings is None else self.listings[chosen],
            None if self.bare is None else self.bare[chosen],
            None if self.greedy is None else self.greedy[chosen],
        )


@partial(
    jax.jit,
    static_argnames=("architecture", "settings", "group_size", "max_new_tokens", "specials"),
)
def sample(
    architecture: Architecture,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    settings: RarConfig,
    *,
    group_size: int,
    max_new_tokens: int,
    specials: tuple[int, int],
    grammar: Grammar | None = None,
) -> Generation:
    """A group of attribute lists for each prompt; `specials` are the ids (end, padding)."""
    return generate(
        architecture.bind(params),
        prompts,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        key=key,
        eos_id=specials[0],
        pad_id=specials[1],
        grammar=grammar,
    )


@partial(jax.jit, static_argnames="architecture")
def encode_images(
    architecture: Architecture, params: Params, prompts: Prompts
) -> VisualFeatures | None:
    """What a model's vision tower says of the pictures of prompts, [n s d]."""
    return architecture.bind(params).visual_of(pictured(prompts))
