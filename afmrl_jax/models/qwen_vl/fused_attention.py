"""cuDNN's flash attention, told by causality and lengths instead of a mask where rows allow it.

JAX turns a mask into a bias of one number a pair of tokens, which every head reads, and cuDNN then
skips nothing. Its rules are those of `jax/_src/cudnn/fused_attention_stablehlo.py`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.runtime.hardware import built_for
from afmrl_jax.types import AnyArray, Array, Bool, Float, Int

PAIRS_AT_ONCE = 1 << 22
"""Pairs of tokens for which a bias is held at once: 8 MB in bfloat16."""


def _attention(
    implementation: Literal["cudnn", "xla"],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    is_causal: bool = False,
    key_value_seq_lengths: jax.Array | None = None,
) -> jax.Array:
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=is_causal,
        key_value_seq_lengths=key_value_seq_lengths,
        implementation=implementation,
    )


Kernel = Callable[..., jax.Array]
"""As `jax.nn.dot_product_attention`."""
_cudnn: Kernel = functools.partial(_attention, "cudnn")
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


def fused_length(length: int) -> int:
    """The length to which rows are padded.

    With a bias, cuDNN refuses gradients of odd lengths ("Unsupported sequence length Q 307"). An
    even one is taken for every form, so that which one runs never depends on the length.

    Example:
        >>> [fused_length(x) for x in (1, 64, 307)]
        [2, 64, 308]
    """
    return length + length % 2


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
    """
    kernel = kernel or _STAND_IN.get() or _cudnn
    length = q.shape[1]
    more = fused_length(length) - length
    if more:
        q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
        if segments is not None:
            segments = jnp.pad(segments, ((0, 0), (0, more)))
        elif lengths is None:
            lengths = jnp.full((q.shape[0],), length, jnp.int32)
    if segments is not None:
        out = _by_segments(q, k, v, jnp.asarray(segments), causal, kernel)
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
            return kernel(*heads, mask=_segment_mask(own, causal)[:, None])

        return _few_rows_at_once(some, (q, k, v, segments))

    return jax.lax.cond(alone, single, shared, q, k, v)


def _segment_mask(own: Int[Array, "b t"], causal: bool) -> Bool[Array, "b t t"]:
    mask = (own[:, :, None] == own[:, None]) & (own > 0)[:, None]
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
    most = max(1, PAIRS_AT_ONCE // length**2)
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


class _Probe(NamedTuple):
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    segments: np.ndarray


def fused_works(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether this machine's cuDNN computes attention and its gradients for such heads.

    False for a program that is built for a GPU elsewhere, unless something stands in for cuDNN,
    which compiles only where a GPU is.
    """
    if built_for() != "gpu" or not fits_fused(dtype, head_dim):
        return False
    if _STAND_IN.get() is not None:
        return True
    # The machine itself must have the GPU on which cuDNN is tried.
    return jax.default_backend() == "gpu" and _tried(dtype, head_dim)


@functools.cache
def _tried(dtype: jnp.dtype, head_dim: int) -> bool:
    """Tried once, because what cuDNN supports differs by GPU and version: every form is compiled
    with its gradients, run, and compared with plain attention.
    """
    try:
        problem = fused_problem(dtype, head_dim)
    except Exception as error:  # cuDNN and XLA raise many kinds; any means: not here.
        problem = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if problem:
        warnings.warn(f"fused attention is not available here ({problem})", stacklevel=2)
    return not problem


def fused_problem(dtype: jnp.dtype, head_dim: int, kernel: Kernel = _cudnn) -> str | None:
    """What is wrong with `kernel`'s values or gradients on small rows; None if nothing is.

    Raises:
        Exception: of any kind, if it cannot be compiled or run.
    """
    rng = np.random.default_rng(0)
    length = 63
    draw = lambda heads: rng.normal(size=(2, length, heads, head_dim)).astype(dtype)  # noqa: E731
    segments = np.ones((2, length), np.int32)
    segments[0, 40:] = 0
    several = np.where(np.arange(length) < 20, 1, 2).astype(np.int32) * segments
    inputs = _Probe(draw(4), draw(2), draw(2), segments)
    for causal, own in ((True, segments), (False, segments), (False, several)):
        inputs = inputs._replace(segments=own)
        found, expected = (
            # The compiled program is called itself: this may run while another one is traced.
            jax.jit(functools.partial(_probed, causal, one)).lower(*inputs).compile()(*inputs)
            for one in (kernel, _plain)
        )
        for part, right in zip(found, expected, strict=True):
            difference = np.abs(np.asarray(part, np.float32) - np.asarray(right, np.float32))
            # NaN fails too.
            if not float(np.max(difference)) < 0.05 * max(1.0, float(np.max(np.abs(right)))):
                return "its numbers differ from those of plain attention"
    return None


def _probed(
    causal: bool, kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
) -> tuple[jax.Array, ...]:
    """Output and gradients of the tokens that exist."""
    real = (segments > 0)[:, :, None, None]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = fused_attention(q, k, v, causal=causal, segments=segments, kernel=kernel)
        # Multiplied, so that a NaN at padding is not lost.
        out = out.astype(jnp.float32) * real.astype(jnp.float32)
        return jnp.sum(out**2), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return (out, *(x.astype(jnp.float32) for x in gradients))


def _plain(*heads: jax.Array, **settings: Any) -> jax.Array:
    return _attention("xla", *(x.astype(jnp.float32) for x in heads), **settings)
