import functools

import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.testing import tiny_config


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


@functools.cache
def weights(architecture):
    """All away from their initial zeros and ones; drawn once for all tests."""
    rng = np.random.default_rng(0)
    return {
        # Added by NumPy: JAX would compile a sum for each shape.
        name: jnp.asarray(np.asarray(value) + np.float32(0.1 * rng.normal(size=value.shape)))
        for name, value in architecture.init(0).items()
    }


@functools.cache
def architecture(family, vocab_size, image_token_id):
    config = tiny_config(family, vocab_size=vocab_size, image_token_id=image_token_id)
    return Architecture.of(config)


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def model(request, tokenizer):
    """A model of each family."""
    small = architecture(request.param, tokenizer.vocab_size, tokenizer.image_pad_id)
    return small.bind(dict(weights(small)))
