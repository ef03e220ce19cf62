"""cuDNN's flash attention, told by causality and lengths instead of a mask where rows allow it.

JAX turns a mask into a bias of one number a pair of tokens, which every head reads, and cuDNN then
skips nothing. Its rules are those of `jax/_src/cudnn/fused_attention_stablehlo.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

PAIRS_AT_ONCE = 1 << 22
"""Pairs of tokens for which a bias is held at once: 8 MB in bfloat16."""


Kernel = Callable[..., jax.Array]
"""As `jax.nn.dot_product_attention`."""


def cudnn(*heads: jax.Array, **settings: Any) -> jax.Array:
    """NVIDIA's kernel."""
    return jax.nn.dot_product_attention(*heads, implementation="cudnn", **settings)


_STAND_IN: ContextVar[Kernel | None] = ContextVar("stand-in for cuDNN", default=None)


@contextmanager
def standing_in(kernel: Kernel) -> Iterator[None]:
    """Inside, attention takes the fused form with another kernel, so that a program can be traced
    as a GPU gets it where none is.

    What was traced before knows nothing of it: use it inside `building_for`.
    """
    token = _STAND_IN.set(kernel)
    try:
        yield
    finally:
        _STAND_IN.reset(token)


def stands_in() -> bool:
    """Whether this is inside `standing_in`."""
    return _STAND_IN.get() is not None


def fused_length(length: int, *, masked: bool = False) -> int:
    """The length to which rows are padded.

    With a bias, cuDNN refuses gradients of odd lengths ("Unsupported sequence length Q 307"). An
    even one is taken for every form, so that which one runs never depends on the length. And where
    64 is left over from blocks of 128, a bias made the gradient by the queries NaN on Hopper cards
    wherever all scores of a token are far below zero, as those of Qwen2.5's first layers can be
    (pytorch/pytorch#196678).

    Args:
        length: tokens of a row.
        masked: whether rows are told by a mask, which becomes a bias.

    Example:
        >>> [fused_length(x) for x in (1, 64, 307)]
        [2, 64, 308]
        >>> [fused_length(x, masked=True) for x in (64, 128, 319)]
        [66, 128, 322]
    """
    even = length + length % 2
    return even + 2 if masked and even % 128 == 64 else even


def fits_fused(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether cuDNN takes heads of this type and size at all; older GPUs refuse more than 128.

    Example:
        >>> fits_fused(jnp.dtype("bfloat16"), 80), fits_fused(jnp.dtype("float32"), 80)
        (True, False)
    """
    return dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 256


def fused_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t n k"],
    v: Float[Array, "b t n k"],
    *,
    causal: bool = False,
    lengths: Int[AnyArray, " b"] | None = None,
    segments: Int[AnyArray, "b t"] | None = None,
    kernel: Kernel | None = None,
    masked: Kernel | None = None,
) -> Float[Array, "b t h k"]:
    """Attention within rows; arguments as the fields of `AttentionLayout`.

    Args:
        q: queries; h is a multiple of n.
        k: keys.
        v: values.
        causal: whether tokens look only at themselves and those before them.
        lengths: tokens of each row, at its front.
        segments: which segment each token belongs to; 0 is padding.
        kernel: computes it; None for cuDNN's, or for what stands in for it.
        masked: computes it where rows are told by a mask; None for `kernel`.
    """
    kernel = kernel or _STAND_IN.get() or cudnn
    length = q.shape[1]
    more = fused_length(length) - length
    if more:
        q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
        if segments is not None:
            segments = jnp.pad(segments, ((0, 0), (0, more)))
        elif lengths is None:
            lengths = jnp.full((q.shape[0],), length, jnp.int32)
    if segments is not None:
        kernels = kernel, masked or kernel
        out = _by_segments(q, k, v, jnp.asarray(segments), causal, *kernels)
    elif causal:
        # What pads a row stands behind everything that exists, so causality hides it.
        out = kernel(q, k, v, is_causal=True)
    elif lengths is None:
        out = kernel(q, k, v)
    else:
        out = _by_lengths(q, k, v, jnp.asarray(lengths), kernel)
    return out[:, :length] if more else out


def _by_lengths(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t n k"],
    v: Float[Array, "b t n k"],
    lengths: Int[Array, " b"],
    kernel: Kernel,
) -> Float[Array, "b t h k"]:
    # Queries keep their full length, because what cuDNN writes for those beyond a row's own is not
    # promised; and an empty row looks at one place, so that it has numbers.
    return kernel(q, k, v, key_value_seq_lengths=jnp.maximum(lengths, 1).astype(jnp.int32))


def _by_segments(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b t n k"],
    v: Float[Array, "b t n k"],
    segments: Int[Array, "b t"],
    causal: bool,
    kernel: Kernel,
    masked: Kernel,
) -> Float[Array, "b t h k"]:
    """By lengths if no row of the batch holds several segments, else by a bias for few rows.

    A bias for all rows at once, 134 MB at 64 rows of 1024, would be read by every head of every
    layer.
    """
    count = jnp.sum(segments > 0, axis=1, dtype=jnp.int32)
    places = jnp.arange(segments.shape[1], dtype=jnp.int32)
    in_front = places[None] < count[:, None]
    alone = jnp.all(segments == jnp.where(in_front, segments[:, :1], 0))

    def single(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if causal:
            return kernel(q, k, v, is_causal=True)
        return _by_lengths(q, k, v, count, kernel)

    def shared(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        def some(part: tuple[jax.Array, ...]) -> jax.Array:
            *heads, own = part
            length = own.shape[1]
            more = fused_length(length, masked=True) - length

            def longer(x: jax.Array) -> jax.Array:
                return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))

            mask = _segment_mask(longer(own), causal)[:, None]
            return masked(*map(longer, heads), mask=mask)[:, :length]

        return _few_rows_at_once(some, (q, k, v, segments))

    return jax.lax.cond(alone, single, shared, q, k, v)


def _segment_mask(own: Int[Array, "b t"], causal: bool) -> Bool[Array, "b t t"]:
    # Padding looks at padding: a token that may look nowhere would have only scores far below zero.
    mask = own[:, :, None] == own[:, None]
    return jnp.tril(mask) if causal else mask


def _few_rows_at_once(
    of: Callable[[tuple[jax.Array, ...]], jax.Array], rows: tuple[jax.Array, ...]
) -> jax.Array:
    """`of` applied to a few rows after the others, of every device's own rows."""
    batch, length = rows[-1].shape
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else dict(mesh.shape).get("data", 1)
    devices = devices if batch % devices == 0 else 1
    own = batch // devices
    most = max(1, PAIRS_AT_ONCE // fused_length(length, masked=True) ** 2)
    few = next(x for x in range(min(own, most), 0, -1) if own % x == 0)

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(devices, own // few, few, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(own // few, devices * few, *x.shape[3:])

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(own // few, devices, few, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(batch, *x.shape[3:])

    if few == own:
        return of(rows)
    return joined(jax.lax.map(of, tuple(map(split, rows))))
