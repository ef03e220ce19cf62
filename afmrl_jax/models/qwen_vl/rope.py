"""Rotary positions: 2-D for patches, M-RoPE (time, row, column) for the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Float, Int

Rotary = Callable[[jax.Array, int, float, tuple[int, int, int]], jax.Array]
"""A decoder's rule of rotary positions, as `mrope_angles`."""


def vision_angles(position: Int[AnyArray, "n p 2"], head_dim: int) -> Float[Array, "n p f"]:
    """Angles of the vision tower: the first half of the frequencies turn with the row.

    Args:
        position: (row, column) in patches.
        head_dim: size of a head.

    Returns:
        float32; f is head_dim / 2.
    """
    quarter = head_dim // 4
    frequency = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) / quarter)
    angles = position.astype(jnp.float32)[..., None] * jnp.asarray(frequency)[None, None, None]
    return angles.reshape(*position.shape[:2], 2 * quarter)


def mrope_angles(
    positions: Int[AnyArray, "b 3 t"],
    head_dim: int,
    theta: float,
    sections: tuple[int, int, int],
) -> Float[Array, "b t f"]:
    """Angles of the decoder; `sections` says how many frequencies follow which axis.

    Args:
        positions: time, row and column.
        head_dim: size of a head.
        theta: base of the frequencies.
        sections: frequencies of time, row and column; they sum to head_dim / 2.

    Returns:
        float32; f is head_dim / 2.
    """
    return _along_axes(positions, theta, np.repeat(np.arange(3), sections))


def interleaved_angles(
    positions: Int[AnyArray, "b 3 t"],
    head_dim: int,
    theta: float,
    sections: tuple[int, int, int],
) -> Float[Array, "b t f"]:
    """As `mrope_angles`, but the axes take turns: time, row, column, time, and so on.

    A row or column that has had its share leaves its turns to time. Qwen3-VL's rule.
    """
    number = np.arange(head_dim // 2)
    axis = np.zeros(len(number), np.int64)
    for one in (1, 2):
        axis[(number % 3 == one) & (number < 3 * sections[one])] = one
    return _along_axes(positions, theta, axis)


def _along_axes(
    positions: Int[AnyArray, "b 3 t"], theta: float, axis: np.ndarray
) -> Float[Array, "b t f"]:
    """Angles of f frequencies, each of which follows the axis that `axis` [f] names."""
    frequency = 1.0 / theta ** (np.arange(len(axis), dtype=np.float32) / len(axis))
    chosen = positions.astype(jnp.float32)[:, axis, :]
    return jnp.swapaxes(chosen, 1, 2) * jnp.asarray(frequency, jnp.float32)[None, None]


class Turn(NamedTuple):
    """Rotary angles as what heads are multiplied with, float32."""

    cos: Float[Array, "b t f"]
    sin: Float[Array, "b t f"]

    @classmethod
    def by(cls, angles: Float[Array, "b t f"]) -> Turn:
        """Cosine and sine of angles.

        On a CPU, XLA would compute them anew for each head of each layer, inside the loops that
        read them: a fourth of the time of the demo generator's prompts. It does not look into the
        branches of a condition, so there they are computed once.
        """

        def both(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.cos(angles), jnp.sin(angles)

        if built_for() != "cpu":
            return cls(*both(angles))
        # Always so, as XLA cannot know.
        finite = jnp.isfinite(angles.reshape(-1)[0])
        return cls(*jax.lax.cond(finite, both, lambda x: (x, x), angles))


def rotate(x: Float[Array, "b t h k"], turn: Turn) -> Float[Array, "b t h k"]:
    """Turn pairs (i, i + k/2) of each head; f is k / 2."""
    cos, sin = (y[:, :, None] for y in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
