"""`demo-weights` in place of a run directory: the models that come with the package."""

from pathlib import Path

import numpy as np
import pytest

from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.errors import RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.generator import Generator
from afmrl_jax.inference.shipped import NAME, WITH_LISTS, ShippedModels, models_of
from afmrl_jax.models.demo_weights import HERE
from afmrl_jax.testing import draw_badge


def test_the_name_stands_for_the_shipped_models(tmp_path, monkeypatch, written_run):
    monkeypatch.chdir(tmp_path)
    found = models_of(NAME)
    assert isinstance(found, ShippedModels)
    assert found.system().name == WITH_LISTS
    assert found.system().generator == found.last_generator
    with pytest.raises(RunError, match="choose from shipped"):
        found.system("agcl")
    assert type(models_of(written_run)) is FinishedRun
    with pytest.raises(RunError, match="or `demo-weights`"):
        models_of(tmp_path / "nothing")
    # A folder of that name is what it is.
    (tmp_path / NAME).mkdir()
    with pytest.raises(RunError, match="not a run directory"):
        models_of(NAME)


def test_what_it_keeps_is_not_in_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = ShippedModels().evaluations
    assert kept.is_relative_to(tmp_path)
    assert not kept.is_relative_to(HERE)


def test_both_models_load_by_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = draw_badge("circle", "red", "a", np.random.default_rng(0))
    (text,) = Generator.load("demo-weights").write([{"image": picture, "text": "red dress"}])
    assert dict(parse_attributes(text))["color"]
    embedder = Embedder.load(Path("demo-weights"))
    given = {"image": picture, "text": "red dress"}
    bare, told = embedder.encode([given, {**given, "attributes": text}])
    assert np.linalg.norm(bare) == pytest.approx(1, abs=1e-5)
    written = embedder.encode([given], write_attributes=True)
    np.testing.assert_allclose(written[0], told, atol=1e-5)
