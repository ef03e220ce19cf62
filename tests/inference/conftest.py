"""A trained run of tiny models."""

import shutil

import pytest


@pytest.fixture(scope="module")
def trained(own_run):
    """Folder of a run with every model trained, without evaluation."""
    for found in ("evaluate", "evaluation.json", "report.html"):
        path = own_run / found
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return own_run
