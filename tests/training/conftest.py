import dataclasses

import pytest

from afmrl_jax.config import (
    AgclConfig,
    BackboneConfig,
    CitConfig,
    DistillConfig,
    EvaluationConfig,
    MeshConfig,
    QwenVLConfig,
    RarConfig,
    RunConfig,
)
from afmrl_jax.testing import tiny_config, write_badge_catalogue


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Settings of a run of a few steps on the badges, and models to match."""
    folder = write_badge_catalogue(tmp_path_factory.mktemp("badges"), splits=True)
    return RunConfig(
        catalogue=str(folder),
        vocab_size=300,
        save_every=2,
        mesh=MeshConfig(data=1),
        distill=DistillConfig(steps=4, batch_size=4),
        backbone=BackboneConfig(steps=2, batch_size=4),
        agcl=AgclConfig(steps=4, batch_size=4),
        rar=RarConfig(
            steps=3, queries=2, group_size=2, evaluate_every=2, evaluation_samples=1, k=3
        ),
        cit=CitConfig(steps=2),
        evaluation=EvaluationConfig(batch_size=16, bootstrap=20, gallery_queries=2),
    )


@pytest.fixture(scope="module")
def tiny_models():
    """Replaces the demo's models by tiny ones for the tests of a module."""

    def demo(family, vocab_size, image_token_id):
        return tiny_config(family, vocab_size=vocab_size, image_token_id=image_token_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QwenVLConfig, "demo", staticmethod(demo))
        yield


@pytest.fixture
def replaced(tiny_run):
    return lambda **changes: dataclasses.replace(tiny_run, **changes)
