"""Windows of a vision tower as rows of their own, for attention that looks no further."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.types import AnyArray, Array, Int


class Windows(NamedTuple):
    """Where patches go so that windows can be computed by themselves.

    A row holds one full window, or several partial ones side by side.
    """

    order: Int[Array, "n r*c"]
    """Patch of each place, r rows of c places for every bin; p where a place is empty."""
    back: Int[Array, "n p"]
    """Place of each patch; r * c for padding."""
    segments: Int[Array, "n*r c"]
    """Window of each place, from 1; 0 where it is empty."""

    def rows(self, x: jax.Array) -> jax.Array:
        """[n p ...] to [n*r c ...], zero at empty places."""
        found = reordered(x, self.order, self.back)
        return found.reshape(*self.segments.shape, *x.shape[2:])

    def patches(self, x: jax.Array) -> jax.Array:
        """[n*r c ...] back to [n p ...], zero at padding."""
        return reordered(x.reshape(*self.order.shape, *x.shape[2:]), self.back, self.order)


@jax.custom_vjp
def reordered(x: jax.Array, order: Int[Array, "n q"], back: Int[Array, "n p"]) -> jax.Array:
    """Rows x [n p ...] at the places `order`, [n q ...]; zero for a place beyond p.

    Args:
        x: rows of vectors.
        order: every place of x that counts once; p or more for nothing.
        back: the inverse, q or more for places of x that go nowhere. With it the gradient is such a
            selection too, where that of an ordinary one adds up by atomic operations.
    """
    places = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="fill", fill_value=0)


def _reordered_forward(
    x: jax.Array, order: jax.Array, back: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return reordered(x, order, back), (order, back)


def _reordered_backward(
    places: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    order, back = places
    return reordered(gradient, back, order), None, None


reordered.defvjp(_reordered_forward, _reordered_backward)


def rows_of_windows(patches: int, side: int) -> tuple[int, int]:
    """Rows and places a row that hold the windows of any bin, see `make_windows`.

    Example:
        >>> rows_of_windows(1024, 8)
        (32, 64)

    Args:
        patches: of a bin.
        side: of a window, in patches.
    """
    rounded = _powers(side**2)
    places = int(rounded[-1])
    worst = float(np.max(rounded[1:] / np.arange(1, side**2 + 1)))
    return max(1, -(-int(patches * worst) // places)), places


def _powers(most: int) -> np.ndarray:
    """The power of two that holds each number up to `most`; 0 for 0."""
    return np.array([0, *(1 << (x - 1).bit_length() for x in range(1, most + 1))], np.int32)


def window_numbers(
    segment: Int[AnyArray, "n p"], position: Int[AnyArray, "n p 2"], side: int
) -> Int[Array, "n p"]:
    """Window of each patch, numbered within its bin from 1; 0 for padding.

    Args:
        segment: picture of each patch, 0 for padding.
        position: (row, column) in patches.
        side: of a window, in patches.
    """
    segment = jnp.asarray(segment)
    row, column = jnp.asarray(position[..., 0]) // side, jnp.asarray(position[..., 1]) // side
    place = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=jnp.int32)[None], segment.shape)
    *keys, place = jax.lax.sort((segment, row, column, place), dimension=1, num_keys=3)
    new = sum(_changes(x).astype(jnp.int32) for x in keys) > 0
    # Padding comes first, as a window 1 of its own if there is any.
    number = jnp.cumsum((new & (keys[0] > 0)).astype(jnp.int32), axis=1)
    return _scattered(place, jnp.where(keys[0] > 0, number, 0), segment.shape[1])


def make_windows(numbers: Int[AnyArray, "n p"], side: int) -> Windows:
    """Rows of windows, from `window_numbers`.

    Every window is given as many places as the next power of two, largest windows first, so that
    none begins in one row and ends in the next. That takes less than twice the places.

    Args:
        numbers: window of each patch.
        side: of a window, in patches.
    """
    bins, count = numbers.shape
    rows, places = rows_of_windows(count, side)
    place = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (bins, count))
    window, patch = jax.lax.sort((jnp.asarray(numbers), place), dimension=1, num_keys=1)
    new = _changes(window)
    start = jax.lax.cummax(jnp.where(new, place, 0), axis=1)
    last = jnp.concatenate([new[:, 1:], jnp.ones((bins, 1), bool)], axis=1)
    end = jax.lax.cummin(jnp.where(last, place, count), axis=1, reverse=True)
    size = jnp.asarray(_powers(count))[end - start + 1]
    size = jnp.where(window > 0, size, 0)
    less, window, patch = jax.lax.sort((-size, window, patch), dimension=1, num_keys=2)
    size, new = -less, _changes(window)
    start = jax.lax.cummax(jnp.where(new, place, 0), axis=1)
    front = jnp.cumsum(jnp.where(new, size, 0), axis=1) - size
    target = jnp.where(window > 0, front + place - start, rows * places)
    order = _scattered(target, patch, rows * places, empty=count)
    segments = _scattered(target, window, rows * places)
    back = _scattered(patch, target, count)
    return Windows(order, back, segments.reshape(bins * rows, places))


def _changes(x: Int[Array, "n p"]) -> jax.Array:
    """Where an entry differs from the one before it; the first one does."""
    first = jnp.ones((x.shape[0], 1), bool)
    return jnp.concatenate([first, x[:, 1:] != x[:, :-1]], axis=1)


def _scattered(
    at: Int[Array, "n p"], values: Int[Array, "n p"], length: int, empty: int = 0
) -> Int[Array, "n q"]:
    """[n length] with the values at their places, if within, and `empty` elsewhere."""

    def one(at: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.full((length,), empty, jnp.int32).at[at].set(values, mode="drop")

    return jax.vmap(one)(at, values)
