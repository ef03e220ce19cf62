"""A harsh session: eight devices, strict promotion, and warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A compile cache shared between sessions would hide nothing here and save minutes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def badges(tmp_path_factory):
    """Folder of a drawn catalogue: 30 products of enamel badges."""
    from afmrl_jax.testing import write_badge_catalogue

    return write_badge_catalogue(tmp_path_factory.mktemp("badges"))


@pytest.fixture(scope="session")
def badge_listings(badges):
    from afmrl_jax.data.catalogue import load_catalogue

    return load_catalogue(badges).listings


@pytest.fixture(scope="session")
def tokenizer(badge_listings):
    from afmrl_jax.data.text import BpeTokenizer

    return BpeTokenizer.train([x.title for x in badge_listings], 320)
