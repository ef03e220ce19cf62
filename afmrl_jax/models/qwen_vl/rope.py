"""Rotary positions: 2-D for patches, M-RoPE (time, row, column) for the decoder."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.types import AnyArray

Rotary = Callable[[jax.Array, int, float, tuple[int, int, int]], jax.Array]
"""A decoder's rule of rotary positions, as `mrope_angles`."""


def vision_angles(position: AnyArray, head_dim: int) -> jax.Array:
    """Angles of the vision tower: the first half of the frequencies turn with the row.

    Args:
        position: int32 [n p 2], (row, column) in patches.
        head_dim: size of a head.

    Returns:
        float32 [n p head_dim/2]
    """
    quarter = head_dim // 4
    frequency = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) / quarter)
    angles = position.astype(jnp.float32)[..., None] * jnp.asarray(frequency)[None, None, None]
    return angles.reshape(*position.shape[:2], 2 * quarter)


def mrope_angles(
    positions: AnyArray, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> jax.Array:
    """Angles of the decoder; `sections` says how many frequencies follow which axis.

    Args:
        positions: int32 [b 3 t].
        head_dim: size of a head.
        theta: base of the frequencies.
        sections: frequencies of time, row and column; they sum to head_dim / 2.

    Returns:
        float32 [b t head_dim/2]
    """
    half = head_dim // 2
    frequency = 1.0 / theta ** (np.arange(half, dtype=np.float32) / half)
    axis = np.repeat(np.arange(3), sections)
    chosen = positions.astype(jnp.float32)[:, axis, :]
    return jnp.swapaxes(chosen, 1, 2) * jnp.asarray(frequency, jnp.float32)[None, None]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn pairs (i, i + k/2) of each head by `angles`.

    Args:
        x: [b t h k].
        angles: float32 [b t k/2].
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
