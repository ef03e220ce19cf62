"""What the AGCL study tries: one factor at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from afmrl_jax.config import AgclConfig
from afmrl_jax.objectives.agcl_kernels.rules import PositiveWeight, WeightedPairs

DISTILLED, TRUE, ORACLE = "annotate-distilled", "attributes-true", "attributes-oracle"
"""Stages that hold attribute lists of the train split."""


@dataclass(frozen=True)
class Variation:
    """One setting of AGCL."""

    name: str
    """Also the name of its stage."""
    label: str
    gamma: float = 0.0
    delta: float | None = None
    agreement_rho: float | None = None
    agreement_epsilon: float = AgclConfig().agreement_epsilon
    mask_warmup: float = 0.0
    teacher_share: float | None = None
    oracle_mask: Literal["product", "family"] | None = None
    positive_weight: PositiveWeight = "own"
    weighted_pairs: WeightedPairs = "all"
    normalize_weights: bool = False
    permute_weights: bool = False
    attributes: str = DISTILLED
    """Stage that holds the attributes for weights and masks."""

    def settings(self, agcl: AgclConfig) -> AgclConfig:
        """The run's settings with this variation's weights and masks."""
        own = {"name", "label", "attributes"}
        fields = (x.name for x in dataclasses.fields(self))
        return dataclasses.replace(agcl, **{x: getattr(self, x) for x in fields if x not in own})


def variations() -> tuple[Variation, ...]:
    """Everything that can be tried except `infonce`; the shipped default is AgclConfig's."""
    gamma, delta = AgclConfig().gamma, AgclConfig().delta
    named = f"gamma {gamma}, delta {delta}"
    return (
        Variation("gamma-0.1", "gamma 0.1", gamma=0.1),
        Variation("gamma-0.3", "gamma 0.3", gamma=0.3),
        Variation("gamma-1", "gamma 1 (the paper's)", gamma=1.0),
        Variation("delta-0.02", "delta 0.02", delta=0.02),
        Variation("delta-0.1", "delta 0.1", delta=0.1),
        Variation("delta-0.3", "delta 0.3", delta=0.3),
        Variation("agreement-0.95", "agreement 0.95", agreement_rho=0.95),
        Variation("default", f"{named} (shipped)", gamma, delta),
        Variation("default-true", f"{named}, true attributes", gamma, delta, attributes=TRUE),
        Variation("gamma-0.3-true", "gamma 0.3, true attributes", gamma=0.3, attributes=TRUE),
        *hardening(),
        Variation("default-oracle", f"{named}, oracle's lists", gamma, delta, attributes=ORACLE),
    )


def hardening() -> tuple[Variation, ...]:
    """Weights that can harden and masks that can filter, with their placebo and their ceiling."""
    neutral: Literal["neutral"] = "neutral"
    return (
        Variation("neutral", "gamma 1, neutral positive", 1.0, positive_weight=neutral),
        Variation(
            "neutral-relative",
            "gamma 1, neutral positive, weights relative to their mean",
            1.0,
            positive_weight=neutral,
            normalize_weights=True,
        ),
        Variation(
            "neutral-permuted",
            "the same, permuted (placebo)",
            1.0,
            positive_weight=neutral,
            normalize_weights=True,
            permute_weights=True,
        ),
        Variation(
            "soft", "gamma -1, neutral positive (Soft-InfoNCE)", -1.0, positive_weight=neutral
        ),
        Variation(
            "delta-0.1-warm", "delta 0.1 after 30 % of the steps", delta=0.1, mask_warmup=0.3
        ),
        Variation(
            "agreement-wide", "agreement 0.9, epsilon 0.2", agreement_rho=0.9, agreement_epsilon=0.2
        ),
        Variation(
            "agreement-weighted",
            "agreement 0.9, epsilon 0.2 after 30 %, agreeing pairs weighed, gamma 1",
            1.0,
            agreement_rho=0.9,
            agreement_epsilon=0.2,
            mask_warmup=0.3,
            positive_weight=neutral,
            weighted_pairs="agreeing",
        ),
        Variation("teacher-0.95", "masked by the InfoNCE embedder, 0.95", teacher_share=0.95),
        Variation("oracle-mask", "masked by the truth (ceiling)", oracle_mask="product"),
    )
