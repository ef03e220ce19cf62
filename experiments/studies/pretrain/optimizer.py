"""Muon for the matrices of the blocks, Adam for the rest."""

from __future__ import annotations

import optax
from optax.contrib import MuonDimensionNumbers, muon

from afmrl_jax.config import OptimizerConfig
from afmrl_jax.models.architecture import Params
from afmrl_jax.training.state import learning_rate_schedule

WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0


def make_muon(
    params: Params, steps: int, *, muon_rate: float, adam_rate: float
) -> optax.GradientTransformation:
    """Muon with a short warm-up and a cosine.

    Args:
        params: those that learn, for their names and shapes.
        steps: of the training.
        muon_rate: peak learning rate of kernels.
        adam_rate: peak learning rate of all else.

    Reference: Jordan et al., https://kellerjordan.github.io/posts/muon, 2024.
    """

    def rate(peak: float) -> optax.Schedule:
        return learning_rate_schedule(OptimizerConfig(peak, warmup_share=0.05), steps)

    # The last two axes multiply; a first one counts layers.
    places = {
        name: MuonDimensionNumbers(x.ndim - 2, x.ndim - 1) if name.endswith("/kernel") else None
        for name, x in params.items()
    }
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        muon(
            rate(muon_rate),
            weight_decay=WEIGHT_DECAY,
            adam_b2=0.98,
            adam_learning_rate=rate(adam_rate),
            muon_weight_dimension_numbers=places,
        ),
    )
