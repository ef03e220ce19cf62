"""Linear maps, norms and stacks of layers, shared by vision tower and decoder.

Parameters are plain `nnx.Param` without mesh names; `parallel/sharding.py` shards them by path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from afmrl_jax.config import Execution
from afmrl_jax.models.qwen_vl.adapters import Adapter, column_gains, column_norms, merged_kernel
from afmrl_jax.models.qwen_vl.mixed_precision import biased, product, stretched
from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import Array, Float, PyTree

Layer = TypeVar("Layer", bound=nnx.Module)


def _along_last(vector: jax.Array, ndim: int, dtype: DTypeLike) -> jax.Array:
    return vector.astype(dtype).reshape((1,) * (ndim - 1) + (-1,))


class Keys:
    """Random keys of initial values, one after the other.

    The keys that `nnx.Rngs` would draw. That one keeps its count in a variable, and updating it
    took most of the time to trace a model of 28 layers.

    Args:
        key: from which they are made.
        shapes_only: nobody will look at the values, so that one layer may stand for all of a stack.
    """

    def __init__(self, key: jax.Array, *, shapes_only: bool = False):
        self._key = key
        self._count = 0
        self.shapes_only = shapes_only

    def draw(self) -> jax.Array:
        """A key that has not been given out yet."""
        self._count += 1
        return jax.random.fold_in(self._key, jnp.uint32(self._count - 1))


class Affine(NamedTuple):
    """x @ kernel + bias, for x of their type."""

    kernel: Float[Array, "i o"]
    bias: Float[Array, " o"] | None = None

    def __call__(
        self, x: Float[Array, "c i"], dtype: DTypeLike | None = None
    ) -> Float[Array, "c o"]:
        """Of each vector by itself; `dtype` is that of sums and result."""
        out = jnp.dot(x, self.kernel, preferred_element_type=dtype)
        return out if self.bias is None else out + self.bias[None]


FEW_ROWS = 256
"""Beyond as many, turning the rows and what comes of them takes longer than it saves."""


class TurnedAffine(NamedTuple):
    """`Affine` as (kernel @ x^T)^T: on a CPU up to twice as fast for a few rows.

    XLA would undo it, so it must not see through the transposes.
    """

    kernel: Float[Array, "o i"]
    bias: Float[Array, " o"] | None = None

    def __call__(
        self, x: Float[Array, "c i"], dtype: DTypeLike | None = None
    ) -> Float[Array, "c o"]:
        """As of `Affine`."""
        columns = jnp.dot(self.kernel, hidden_from_xla(x.T), preferred_element_type=dtype)
        out = hidden_from_xla(columns).T
        return out if self.bias is None else out + self.bias[None]


def hidden_from_xla(x: jax.Array) -> jax.Array:
    """The same array, of which the compiler does not see how it was made."""
    return jax.lax.optimization_barrier(x)


def turns(rows: int) -> bool:
    """Whether `TurnedAffine` is the faster form for so many rows on this machine.

    For a single row it is not worth turning a kernel; one that lies turned is taken as it is.
    """
    return built_for() == "cpu" and rows <= FEW_ROWS


def for_few_rows(one: Affine, rows: int) -> Affine | TurnedAffine:
    """The form of a map that is fastest for a few rows on this machine, for the front of a loop."""
    if rows == 1 or not turns(rows):
        return one
    return TurnedAffine(hidden_from_xla(one.kernel.T), one.bias)


def side_by_side(maps: Sequence[Affine]) -> Affine:
    """One map for several of the same input, its columns theirs in order."""
    kernel = jnp.concatenate([one.kernel for one in maps], axis=1)
    biases = [one.bias for one in maps if one.bias is not None]
    if not biases:
        return Affine(kernel, None)
    assert len(biases) == len(maps)
    return Affine(kernel, jnp.concatenate(biases))


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [in, out], and a low-rank adapter where one is given.

    Parameters of any float type are cast to that of x; their gradients are summed in their own.
    `lora_b` must hold what `adapters.scaled` makes of the parameter, as in `Architecture.bind`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        keys: Keys,
        adapter: Adapter | None = None,
    ):
        # Scaled by fan-in: at demo widths a fixed 0.02 would leave the residual branches silent.
        kernel = jax.random.normal(keys.draw(), (inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(inputs**-0.5 * kernel)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.adapted = adapter is not None
        if adapter is not None:
            down = jax.random.normal(keys.draw(), (inputs, adapter.rank), jnp.float32)
            self.lora_a = nnx.Param(inputs**-0.5 * down)
            # Zero, so that a new adapter changes nothing.
            self.lora_b = nnx.Param(jnp.zeros((adapter.rank, outputs), jnp.float32))
            norms = column_norms(self.kernel[...]) if adapter.dora else None
            self.lora_magnitude = None if norms is None else nnx.Param(norms)

    def __call__(self, x: Float[Array, "*n inputs"]) -> Float[Array, "*n outputs"]:
        """Of each vector by itself."""
        kernel = self.kernel[...]
        out = product(x, kernel)
        if self.adapted:
            a, b = self.lora_a[...], self.lora_b[...]
            out = out + product(product(x, a), b)
            if self.lora_magnitude is not None:
                out = stretched(out, column_gains(kernel, a, b, self.lora_magnitude[...]))
        return out if self.bias is None else biased(out, self.bias[...])

    def affine(self, dtype: DTypeLike) -> Affine:
        """The same map in one type, an adapter merged into its kernel in float32 before.

        For the front of a loop over tokens, whose every turn would cast again.
        """
        kernel = self.kernel[...]
        if self.adapted:
            magnitude = None if self.lora_magnitude is None else self.lora_magnitude[...]
            kernel = merged_kernel(kernel, self.lora_a[...], self.lora_b[...], magnitude)
        bias = None if self.bias is None else self.bias[...].astype(dtype)
        return Affine(kernel.astype(dtype), bias)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself, in float32 inside."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        return (wide * _along_last(self.scale[...], x.ndim, jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Of each vector by itself, in float32 inside."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + self.eps)
        scale, bias = (_along_last(p[...], x.ndim, jnp.float32) for p in (self.scale, self.bias))
        return (wide * scale + bias).astype(x.dtype)


def stack_layers(count: int, make: Callable[[], Layer], keys: Keys) -> Layer:
    """`count` layers as one module; parameter [...] of a layer is [count ...] there.

    Args:
        count: of layers.
        make: builds one, drawing from `keys`.
        keys: of the initial values.
    """
    graphdef, first = nnx.split(make())
    if keys.shapes_only:
        repeat = lambda leaf: jnp.broadcast_to(leaf[None], (count, *leaf.shape))  # noqa: E731
        return nnx.merge(graphdef, jax.tree.map(repeat, first))
    states = [first, *(nnx.split(make())[1] for _ in range(count - 1))]
    return nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """What each of `count` layers has of a tree with the layers along its leaves' first axis.

    For the front of a loop that runs all layers at every turn: inside it XLA copies each layer's
    weights out of the stack again and again.
    """

    def part(number: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[number], tree)

    return [part(number) for number in range(count)]


def parted(layers: Layer) -> tuple[Layer | None, Layer]:
    """A stack without its last layer, or None if that is all, and the last layer by itself."""
    graphdef, state = nnx.split(layers)
    front = jax.tree.map(lambda leaf: leaf[:-1], state)
    end = jax.tree.map(lambda leaf: leaf[-1], state)
    several = jax.tree.leaves(state)[0].shape[0] > 1
    return nnx.merge(graphdef, front) if several else None, nnx.merge(graphdef, end)


def run_stack(
    layers: Layer,
    step: Callable[[Layer, PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    extras: PyTree,
    execution: Execution,
) -> tuple[PyTree, PyTree]:
    """Apply stacked layers in order, compiled once and looped over or unrolled.

    Args:
        layers: from `stack_layers`.
        step: (layer, carry, extra) -> (carry, out).
        carry: what goes from layer to layer.
        extras: tree of arrays with the layers along their first axis; None for nothing.
        execution: loop or unrolled, and what the backward pass recomputes.

    Returns:
        The last carry, and the outs stacked along a first axis.
    """
    graphdef, state = nnx.split(layers)
    count = jax.tree.leaves(state)[0].shape[0]
    scans = execution.scans(count)

    def body(carry: PyTree, entry: PyTree) -> tuple[PyTree, PyTree]:
        weights, extra = entry
        return step(nnx.merge(graphdef, weights), carry, extra)

    own = _rematerialized(body, execution, scans)
    return jax.lax.scan(own, carry, (state, extras), unroll=1 if scans else count)


def run_layer(
    layer: Layer,
    step: Callable[[Layer, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    execution: Execution,
) -> tuple[PyTree, PyTree]:
    """Apply one layer outside a stack as `run_stack` would, but what it gives may have any form."""
    graphdef, state = nnx.split(layer)

    def body(carry: PyTree, weights: PyTree) -> tuple[PyTree, PyTree]:
        return step(nnx.merge(graphdef, weights), carry)

    return _rematerialized(body, execution, False)(carry, state)


def _rematerialized(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], execution: Execution, scans: bool
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    if execution.remat == "none":
        return body
    policy = None
    if execution.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # A loop cannot undo the recomputation by common subexpressions; unrolled code can.
    return jax.checkpoint(body, policy=policy, prevent_cse=not scans)
