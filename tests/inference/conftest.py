"""A trained run of tiny models, once for a session."""

import pytest

from afmrl_jax.runs.pipeline import Pipeline


@pytest.fixture(scope="module")
def trained(tiny_run, tiny_models, tmp_path_factory):
    """Folder of a run with every model trained, without evaluation."""
    folder = tmp_path_factory.mktemp("run") / "trained"
    pipeline = Pipeline(folder, tiny_run)
    pipeline.run_to("cit-1")
    pipeline.run.close()
    return folder
