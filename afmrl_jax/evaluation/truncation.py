"""Retrieval with only the first dimensions of the vectors."""

from __future__ import annotations

import numpy as np

from afmrl_jax.evaluation.metrics import metric_values
from afmrl_jax.evaluation.ranking import VectorScorer, rank_gallery
from afmrl_jax.evaluation.tasks import TaskInputs
from afmrl_jax.types import JsonObject

SMALLEST = 8
NAMES = ("R@1", "R@10")


def dimensions(size: int) -> list[int]:
    """The whole size and the powers of two below it, down to 8, descending.

    Example:
        >>> dimensions(1536)
        [1536, 1024, 512, 256, 128, 64, 32, 16, 8]
    """
    powers = [2**n for n in range(size.bit_length()) if SMALLEST <= 2**n < size]
    return [size, *reversed(powers)]


def truncated(vectors: np.ndarray, size: int) -> np.ndarray:
    """Unit vectors of the first `size` dimensions, with the others at 0, float32 [n d]."""
    out = np.zeros_like(vectors, np.float32)
    out[:, :size] = vectors[:, :size]
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def truncation_curve(inputs: TaskInputs) -> JsonObject | None:
    """Fine-grained recall by dimension: `dims`, `R@1` and `R@10` in percent; None without vectors.

    Reference: Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022.
    """
    if inputs.both is None:
        return None
    queries, gallery = inputs.query_places, inputs.gallery_places
    labels = (inputs.products[queries], inputs.products[gallery])
    out: JsonObject = {"dims": dimensions(inputs.both.shape[1])} | {x: [] for x in NAMES}
    for size in out["dims"]:
        # The same shape for every size, so that one program serves all.
        vectors = truncated(inputs.both, size)
        scorer = VectorScorer(vectors[queries], vectors[gallery])
        (found,) = rank_gallery(scorer, [labels], 10, inputs.own)
        for name, values in metric_values(found, NAMES).items():
            kept = values[np.isfinite(values)]
            out[name].append(round(100 * float(kept.mean()), 2) if len(kept) else None)
    return out
