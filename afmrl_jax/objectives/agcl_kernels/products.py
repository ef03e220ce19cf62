"""Products of vectors in AGCL: exact in float32, or as three products of bfloat16 parts."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from afmrl_jax.runtime.hardware import built_for

VectorPrecision = Literal["auto", "float32", "bf16_x3"]
Chosen = Literal["float32", "bf16_x3"]


def accumulator(x: jax.Array) -> jnp.dtype:
    """The type in which sums over `x` are kept."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def chosen_precision(wanted: VectorPrecision) -> Chosen:
    """What `auto` stands for on the devices at hand.

    GPUs multiply float32 outside of their matrix units, sixteen times slower than bfloat16; so it
    is `bf16_x3` on those that have bfloat16 there, and `float32` elsewhere.

    Raises:
        ValueError: there is no such precision.
    """
    if wanted not in get_args(VectorPrecision):
        known = ", ".join(get_args(VectorPrecision))
        raise ValueError(f"AGCL multiplies vectors in {known}, not in {wanted!r}")
    if wanted != "auto":
        return wanted
    return "bf16_x3" if built_for() == "gpu" and _has_bfloat16() else "float32"


def product(
    left: jax.Array, right: jax.Array, contract: tuple[int, int], precision: Chosen
) -> jax.Array:
    """Matrix product over the named dimensions, accumulated in float32 or, for float64, in it.

    `bf16_x3` splits float32 into the bfloat16 nearest to it and that nearest to the rest, and
    leaves the product of both rests out. Cosines in 1536 dimensions are then off by 1e-7 (root mean
    square), at most 6e-7 between random vectors and 6e-6 between equal ones. bfloat16 vectors are
    multiplied exactly either way.

    Args:
        left: matrix.
        right: matrix of the same type.
        contract: dimension of each that is summed over.
        precision: of float32 matrices.
    """
    kind = accumulator(left)
    dimensions = (((contract[0],), (contract[1],)), ((), ()))

    def multiply(a: jax.Array, b: jax.Array, how: jax.lax.PrecisionLike) -> jax.Array:
        return jax.lax.dot_general(a, b, dimensions, precision=how, preferred_element_type=kind)

    if left.dtype == right.dtype == jnp.bfloat16 and not _on_cpu():
        return multiply(left, right, None)
    if precision == "float32" or left.dtype != jnp.float32:
        return multiply(left, right, jax.lax.Precision.HIGHEST)
    if not _on_cpu():
        return multiply(left, right, jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3)
    # XLA has no such algorithm for CPUs. Products of bfloat16 numbers are exact in float32.
    (near, rest), (other, other_rest) = _parts(left), _parts(right)
    exact = jax.lax.Precision.HIGHEST
    small = multiply(near, other_rest, exact) + multiply(rest, other, exact)
    return small + multiply(near, other, exact)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bfloat16 numbers nearest to float32 numbers and to what is left of them, in float32."""

    def nearest(x: jax.Array) -> jax.Array:
        # A conversion there and back is one that XLA may drop.
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

    near = nearest(x)
    return near, nearest(x - near)


def _on_cpu() -> bool:
    return built_for() == "cpu"


def _has_bfloat16() -> bool:
    """Whether the matrix units know it: NVIDIA's from 8.0 on; others do not report a number."""
    version = str(getattr(jax.devices()[0], "compute_capability", ""))
    return not version[:1].isdigit() or float(version) >= 8
