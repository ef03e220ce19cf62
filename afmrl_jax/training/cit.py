"""Cyclic iterative training: the reinforced G re-annotates a share, R trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from afmrl_jax.config import AgclConfig, RunConfig


def cit_settings(config: RunConfig) -> AgclConfig:
    """AGCL settings of a cycle: fewer steps at a lower rate, everything else as before."""
    optimiser = dataclasses.replace(
        config.agcl.optimiser, learning_rate=config.cit.learning_rate, warmup_share=0.05
    )
    return dataclasses.replace(config.agcl, steps=config.cit.steps, optimiser=optimiser)


def choose_share(count: int, share: float, seed: int) -> np.ndarray:
    """Positions of the listings to annotate again, drawn at random as in the paper, sorted."""
    size = max(1, round(share * count))
    return np.sort(np.random.default_rng([seed, 77]).permutation(count)[:size])


def merge_annotations(
    before: Mapping[str, str], again: Mapping[str, str], listing_ids: Sequence[str]
) -> dict[str, str]:
    """Attributes of the training listings with the re-annotated ones replaced."""
    return {i: again.get(i, before.get(i, "")) for i in listing_ids}
