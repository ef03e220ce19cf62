"""What the AGCL study tries: one factor at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from afmrl_jax.config import AgclConfig

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
    attributes: str = DISTILLED
    """Stage that holds the attributes for weights and masks."""

    def settings(self, agcl: AgclConfig) -> AgclConfig:
        """The run's settings with this variation's weights and masks."""
        changes = {x: getattr(self, x) for x in ("gamma", "delta", "agreement_rho")}
        return dataclasses.replace(agcl, **changes)


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
        Variation("default-oracle", f"{named}, oracle's lists", gamma, delta, attributes=ORACLE),
    )
