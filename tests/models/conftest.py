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


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def model(request, tokenizer):
    """A model whose weights are all away from their initial zeros and ones."""
    config = tiny_config(
        request.param, vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    architecture = Architecture.of(config)
    rng = np.random.default_rng(0)
    params = {
        name: value + jnp.asarray(0.1 * rng.normal(size=value.shape), jnp.float32)
        for name, value in architecture.init(0).items()
    }
    return architecture.bind(params)
