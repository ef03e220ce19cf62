"""Visual features as they are kept on disk: all arrays of a picture side by side."""

from __future__ import annotations

import jax.numpy as jnp

from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.types import Array, Float


def side_by_side(features: VisualFeatures) -> Float[Array, "n s w"]:
    """All arrays [n s d] as one; w is d for each of them."""
    return jnp.concatenate([features.tokens, *features.deep], axis=-1)


def apart(features: VisualFeatures, width: int) -> VisualFeatures:
    """What was kept side by side as arrays of this width again; itself where it is not."""
    count = features.tokens.shape[-1] // width
    if count == 1:
        return features
    first, *deep = (features.tokens[..., n * width : (n + 1) * width] for n in range(count))
    return VisualFeatures(first, tuple(deep))
