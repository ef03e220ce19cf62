"""Products and sums with wide weights and narrow activations, whose gradients are summed wide."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from afmrl_jax.types import AnyArray, Array, Float


def product(x: Float[Array, "*n inputs"], kernel: Float[Array, "inputs outputs"]) -> jax.Array:
    """X @ kernel, the kernel cast to the type of x, [*n outputs].

    The gradient of a kernel of a wider type is summed in that type, over rows and over devices.
    By plain differentiation of the cast each device would round its sum to the type of x, and the
    devices would add these up in it.
    """
    if kernel.dtype == x.dtype:
        return jnp.dot(x, kernel)
    return _product(x, kernel)


def biased(x: Float[Array, "*n outputs"], bias: Float[Array, " outputs"]) -> jax.Array:
    """X + bias, the bias cast to the type of x, its gradient summed in its own type."""
    return _biased(x, bias)


def stretched(x: Float[Array, "*n outputs"], gain: Float[Array, " outputs"]) -> jax.Array:
    """X * gain, the gain cast to the type of x, its gradient summed in its own type."""
    return _stretched(x, gain)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel.astype(x.dtype))


def _product_forward(x: Any, kernel: Any) -> tuple[jax.Array, tuple]:
    # Only what a gradient needs is kept: activations of frozen kernels are not.
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    example = jnp.zeros((), kernel.value.dtype)
    return _product(x.value, kernel.value), (*kept, example)


def _product_backward(kept: tuple, cotangent: Any) -> tuple[jax.Array | None, jax.Array | None]:
    x, kernel, example = kept
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    by_x = by_kernel = None
    if kernel is not None:
        narrow = kernel.astype(cotangent.dtype)
        by_x = jax.lax.dot_general(cotangent, narrow, (((cotangent.ndim - 1,), (1,)), ((), ())))
    if x is not None:
        rows = tuple(range(x.ndim - 1))
        by_kernel = jax.lax.dot_general(
            x, cotangent, ((rows, rows), ((), ())), preferred_element_type=example.dtype
        )
    return by_x, by_kernel


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


@jax.custom_vjp
def _biased(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + _along_last(bias, x)


def _biased_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _biased(x, bias), bias


def _biased_backward(bias: AnyArray, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = tuple(range(cotangent.ndim - 1))
    return cotangent, jnp.sum(cotangent, axis=rows, dtype=bias.dtype)


_biased.defvjp(_biased_forward, _biased_backward)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


@jax.custom_vjp
def _stretched(x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * _along_last(gain, x)


def _stretched_forward(x: Any, gain: Any) -> tuple[jax.Array, tuple]:
    # The outputs of a map are only kept where its gains learn.
    kept = x.value if gain.perturbed else None
    return _stretched(x.value, gain.value), (kept, gain.value)


def _stretched_backward(kept: tuple, cotangent: Any) -> tuple[jax.Array | None, jax.Array | None]:
    x, gain = kept
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    by_gain = None
    if x is not None:
        rows = tuple(range(x.ndim - 1))
        by_gain = jnp.sum(x.astype(gain.dtype) * cotangent.astype(gain.dtype), axis=rows)
    return cotangent * _along_last(gain, cotangent), by_gain


_stretched.defvjp(_stretched_forward, _stretched_backward, symbolic_zeros=True)
