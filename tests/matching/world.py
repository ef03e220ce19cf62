"""Vectors and lists of a drawn catalogue whose pairs have a known mixture of cosines."""

import numpy as np

from afmrl_jax.matching.candidates import Side
from afmrl_jax.matching.evaluate import Truth
from afmrl_jax.matching.lists import AttributeTable, Vocabulary
from afmrl_jax.retrieval.exact import ExactIndex


def draw_world(seed, families=40, products=3, listings=4, *, noise=0.35, dim=16, lists=True):
    """Side, index and truth: families of near-twin products, each listed several times."""
    rng = np.random.default_rng(seed)
    vectors, texts, product, family = [], [], [], []
    for f in range(families):
        base = rng.normal(size=dim)
        for p in range(products):
            twin = base + 0.6 * rng.normal(size=dim)
            for _ in range(listings):
                vectors.append(twin + noise * rng.normal(size=dim) * rng.uniform(0.4, 1.6))
                product.append(f * products + p)
                family.append(f)
                wrong = rng.random() < 0.15
                kind = rng.integers(products) if wrong else p
                texts.append(f"model: m{f % 7}; variant: v{kind}")
    vectors = np.array(vectors, np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = AttributeTable(texts, Vocabulary()) if lists else None
    index = ExactIndex([str(n) for n in range(len(vectors))], vectors)
    return Side(vectors, table), index, Truth(np.array(product), np.array(family))
