"""What the tests of the scripts share."""

import importlib
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def benchmarks(monkeypatch):
    """Import of a module of `experiments/` by name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module
