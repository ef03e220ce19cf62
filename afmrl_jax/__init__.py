"""AFMRL in JAX: fine-grained product retrieval with generated attributes.

Everything below is imported when it is first used, so `import afmrl_jax` itself loads neither JAX
nor Grain: processes that only read a catalogue start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afmrl_jax.config import (
        AgclConfig,
        BackboneConfig,
        CitConfig,
        DistillConfig,
        EvaluationConfig,
        ImageConfig,
        ModelSettings,
        QwenVLConfig,
        RarConfig,
        RunConfig,
        TextBudget,
    )
    from afmrl_jax.data.catalogue.load import load_catalogue
    from afmrl_jax.data.catalogue.records import Catalogue, Listing
    from afmrl_jax.inference.embedder import Embedder
    from afmrl_jax.inference.finished_run import FinishedRun
    from afmrl_jax.inference.generator import Generator
    from afmrl_jax.inference.index import Index
    from afmrl_jax.models.qwen_vl.presets import preset
    from afmrl_jax.objectives.agcl import agcl_loss
    from afmrl_jax.objectives.agcl_reference import agcl_loss_reference
    from afmrl_jax.objectives.bm25 import bm25_scores
    from afmrl_jax.objectives.grpo import group_advantages, grpo_loss
    from afmrl_jax.objectives.rewards import Outcome, Reward
    from afmrl_jax.runs.pipeline import Pipeline

__version__ = "0.1.0"

_HOME = {
    "afmrl_jax.config": (
        "AgclConfig",
        "BackboneConfig",
        "CitConfig",
        "DistillConfig",
        "EvaluationConfig",
        "ImageConfig",
        "ModelSettings",
        "QwenVLConfig",
        "RarConfig",
        "RunConfig",
        "TextBudget",
    ),
    "afmrl_jax.data.catalogue.load": ("load_catalogue",),
    "afmrl_jax.data.catalogue.records": ("Catalogue", "Listing"),
    "afmrl_jax.inference.embedder": ("Embedder",),
    "afmrl_jax.inference.finished_run": ("FinishedRun",),
    "afmrl_jax.inference.generator": ("Generator",),
    "afmrl_jax.inference.index": ("Index",),
    "afmrl_jax.models.qwen_vl.presets": ("preset",),
    "afmrl_jax.objectives.agcl": ("agcl_loss",),
    "afmrl_jax.objectives.agcl_reference": ("agcl_loss_reference",),
    "afmrl_jax.objectives.bm25": ("bm25_scores",),
    "afmrl_jax.objectives.grpo": ("group_advantages", "grpo_loss"),
    "afmrl_jax.objectives.rewards": ("Outcome", "Reward"),
    "afmrl_jax.runs.pipeline": ("Pipeline",),
}
"""Public names by the module that defines them."""
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AgclConfig",
    "BackboneConfig",
    "Catalogue",
    "CitConfig",
    "DistillConfig",
    "Embedder",
    "EvaluationConfig",
    "FinishedRun",
    "Generator",
    "ImageConfig",
    "Index",
    "Listing",
    "ModelSettings",
    "Outcome",
    "Pipeline",
    "QwenVLConfig",
    "RarConfig",
    "Reward",
    "RunConfig",
    "TextBudget",
    "__version__",
    "agcl_loss",
    "agcl_loss_reference",
    "bm25_scores",
    "group_advantages",
    "grpo_loss",
    "load_catalogue",
    "preset",
]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use (PEP 562)."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_MODULE[name]), name)
    # The next look-up need not come here.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
