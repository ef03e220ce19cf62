"""A finished run of models so small that it trains in a minute, for campaigns and measurements."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    CitConfig,
    DistillConfig,
    EvaluationConfig,
    ImageConfig,
    MeshConfig,
    RarConfig,
    RunConfig,
    TextBudget,
)
from afmrl_jax.models.families import FAMILIES
from afmrl_jax.testing import tiny_demo, write_badge_catalogue


def tiny_config_of_run(catalogue: Path) -> RunConfig:
    """Settings of a run of a few steps with every stage."""
    return RunConfig(
        catalogue=str(catalogue),
        vocab_size=300,
        save_every=2,
        mesh=MeshConfig(data=1),
        image=ImageConfig(max_pixels=48 * 48),
        text=TextBudget(buckets=(16, 56, 76), max_attribute_tokens=20),
        distill=DistillConfig(steps=4, batch_size=4),
        backbone=BackboneConfig(steps=2, batch_size=4),
        agcl=AgclConfig(steps=4, batch_size=4),
        rar=RarConfig(
            steps=3, queries=2, group_size=2, evaluate_every=2, evaluation_samples=1, k=3
        ),
        cit=CitConfig(steps=2),
        evaluation=EvaluationConfig(batch_size=16, bootstrap=20, gallery_queries=2, latency=False),
    )


@contextmanager
def with_tiny_models() -> Iterator[None]:
    """Replaces the demo's models by tiny ones."""
    before = dict(FAMILIES)
    try:
        for name, family in before.items():
            FAMILIES[name] = dataclasses.replace(family, demo=tiny_demo(name))
        yield
    finally:
        FAMILIES.update(before)


def train_tiny_run(folder: Path) -> Path:
    """A finished run in a folder, trained unless it is there; its catalogue lies beside it."""
    from afmrl_jax.runs.pipeline import Pipeline

    catalogue = folder.with_name(f"{folder.name}-badges")
    if not (folder / "evaluate" / "DONE.json").is_file():
        shutil.rmtree(catalogue, ignore_errors=True)
        write_badge_catalogue(catalogue, splits=True)
        with with_tiny_models():
            Pipeline(folder, tiny_config_of_run(catalogue)).execute()
    return folder
