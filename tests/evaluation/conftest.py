import numpy as np
import pytest


@pytest.fixture
def clustered(rng):
    """Unit vectors [60 8] of 12 products in 4 categories, with products, families, categories."""
    centres = rng.normal(size=(12, 8))
    products = np.repeat(np.arange(12), 5)
    vectors = centres[products] + 0.5 * rng.normal(size=(60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, products, products // 2, products // 3
