import pytest

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.marketplace.plan import plan


def tiny(**changes):
    """Settings of about a hundred listings."""
    sizes = {
        "distill_families": 4,
        "train_families": 6,
        "reward_families": 3,
        "test_families": 4,
        "duplicate_share": 0.5,
    }
    return MarketplaceSettings(**(sizes | changes))


@pytest.fixture(scope="session")
def settings():
    return tiny()


@pytest.fixture(scope="session")
def offers(settings):
    return plan(settings)


@pytest.fixture(scope="session")
def full_plan():
    return plan(MarketplaceSettings(distill_families=200, train_families=200, reward_families=150))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of marketplaces that is empty."""
    monkeypatch.setenv("AFMRL_MARKETPLACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
