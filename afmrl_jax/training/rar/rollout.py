"""Lists sampled from the generator, and what they earned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.config import RarConfig
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts, pictured
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.objectives import rewards as objectives
from afmrl_jax.objectives.rewards import Outcome, Reward
from afmrl_jax.types import Bool, Float

TAIL_STEP = 16
"""Lengths of continuations are rounded up to multiples of it, so that few shapes are compiled."""


def trimmed_length(mask: np.ndarray) -> int:
    """Places that continuations need, of bool [... n]: the longest, rounded up, at most n."""
    longest = int(mask.sum(-1).max(initial=1))
    return min(-(-longest // TAIL_STEP) * TAIL_STEP, mask.shape[-1])


@dataclass(frozen=True)
class Rollout:
    """A group of samples for each query, and what they were worth; all [q g]."""

    rewards: Float[np.ndarray, "q g"]
    recall: Float[np.ndarray, "q g"]
    outcome: Outcome
    """How the embedder found with them, NumPy arrays."""
    malformed: Bool[np.ndarray, "q g"]
    texts: list[str]
    """q * g, group by group."""

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
