"""Bytes of patches to the numbers that a vision tower takes."""

from __future__ import annotations

import jax.numpy as jnp

from afmrl_jax.data.batching.images import Normalization
from afmrl_jax.types import AnyArray, Array, Float, Real


def normalized(
    patches: Real[AnyArray, "n p d"], normalization: Normalization | None, frames: int
) -> Float[Array, "n p f"]:
    """Normalised pixels of all frames, as Qwen2-VL's image processor gives them, in float32.

    Args:
        patches: bytes of one frame, d = channels * side * side. Numbers are left as they are.
        normalization: constants and erased patches; None with numbers.
        frames: of a patch; a still picture is repeated to fill it.

    Raises:
        ValueError: bytes without a normalization.
    """
    patches = jnp.asarray(patches)
    if jnp.issubdtype(patches.dtype, jnp.floating):
        return patches
    if normalization is None:
        raise ValueError("patches of bytes need a normalization; a VLBatch has one beside them")
    bins, count, size = patches.shape
    mean, std, kept = map(jnp.asarray, normalization)
    channels = mean.shape[1]
    values = patches.reshape(bins, count, channels, 1, size // channels).astype(jnp.float32)
    values = (values / 255 - mean[:, None, :, None, None]) / std[:, None, :, None, None]
    values = jnp.where(kept[:, :, None, None, None], values, 0)
    values = jnp.broadcast_to(values, (bins, count, channels, frames, size // channels))
    return values.reshape(bins, count, frames * size)
