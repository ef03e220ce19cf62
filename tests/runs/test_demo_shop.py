"""The shop of `afmrl serve --demo`: drawn garments that the shipped models embed once."""

import dataclasses

import numpy as np
import pytest

from afmrl_jax.cli.serve import Serve
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.shipped import BARE, SYSTEMS, WITH_LISTS, ShippedModels
from afmrl_jax.runs import demo_shop
from afmrl_jax.runs.embedded import ABOUT, About
from afmrl_jax.runs.living.index import LivingIndex
from afmrl_jax.testing import change_a_bit


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A shop of a few listings, in a cache of its own."""
    few = dataclasses.replace(demo_shop.SETTINGS, test_families=1, products=(1, 1), offers=(2, 2))
    monkeypatch.setattr(demo_shop, "SETTINGS", few)
    monkeypatch.setenv("AFMRL_MARKETPLACE_CACHE", str(tmp_path / "marketplace"))
    monkeypatch.setenv(demo_shop.VARIABLE, str(tmp_path / "demo"))


def test_the_shipped_models_stand_for_a_run():
    models = ShippedModels()
    assert models.system().name == WITH_LISTS
    assert models.system(BARE).generator is None
    embedder = Embedder.of(models, models.system())
    vectors = embedder.encode(["striped dress", "dress with stripes"], label=None)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-4)
    with pytest.raises(RunError, match="choose from shipped, shipped"):
        models.system("infonce")
    with pytest.raises(RunError, match="choose embedder or generator"):
        models.model("distill")
    assert models.grammar(300) is None


def test_listings_have_prices_and_brands(small):
    shop = demo_shop.demo_shop()
    assert len(shop) == 2
    for x in shop.listings:
        assert x.extra is not None
        assert 10 < x.extra["price"] < 250
        assert x.extra["brand"] == x.seller
    assert shop.listings == demo_shop.demo_shop().listings


@pytest.mark.slow
def test_the_shop_is_embedded_once_for_both_systems(small, monkeypatch, capfd):
    models = ShippedModels()
    folders = demo_shop.demo_indexes(models)
    assert [About.read(x).system for x in folders] == [x.name for x in SYSTEMS[::-1]]
    with LivingIndex(folders[0]) as index:
        assert len(index) == 2
        assert all(x["attributes"] and x["extra"]["price"] for x in index.lines(5))
        assert index.entry(index.lines(1)[0]["listing_id"]).thumbnail is not None
    written = [(x / ABOUT).stat().st_mtime_ns for x in folders]
    assert demo_shop.demo_indexes(models) == folders
    assert [(x / ABOUT).stat().st_mtime_ns for x in folders] == written
    change_a_bit(folders[1] / "listings.jsonl")
    capfd.readouterr()
    demo_shop.demo_indexes(models)
    assert "embedded again" in capfd.readouterr().err
    assert (folders[0] / ABOUT).stat().st_mtime_ns == written[0]
    About.read(folders[1])


def test_a_cache_that_others_can_write_is_refused(small, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo").chmod(0o777)
    with pytest.raises(RunError, match="other users may write it"):
        demo_shop.demo_indexes(ShippedModels())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "or --demo"),
        ({"run": "a"}, "--run and --index"),
        ({"run": "a", "demo": True}, "leave --run"),
        ({"compare": "a", "demo": True}, "leave --run"),
    ],
)
def test_serve_needs_a_run_or_the_demo(given, said):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    with pytest.raises(ConfigError, match=said):
        Serve(**given).execute()
