"""Which forms of fused attention this machine computes rightly."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.models.qwen_vl.fused_attention import (
    Kernel,
    cudnn,
    fits_fused,
    fused_attention,
    stands_in,
)
from afmrl_jax.runtime.hardware import built_for

LENGTH = 63
"""Of the rows that are tried: odd, and with the one beside it what is left over of 128 is 64."""
Layout = dict[str, Any]


class FusedForms(NamedTuple):
    """What is wrong with the forms, each in a line; empty for what is not."""

    causal: str = ""
    """Tokens look at those before them."""
    lengths: str = ""
    """Tokens look at those that exist."""
    masks: str = ""
    """Rows hold several segments."""

    @property
    def rows(self) -> bool:
        """Whether rows of one segment can be fused, which is what nearly all rows are."""
        return not self.causal and not self.lengths


def fused_forms(dtype: jnp.dtype, head_dim: int) -> FusedForms:
    """What this machine's cuDNN makes of such heads, values and gradients.

    For a program that is built for a GPU elsewhere nothing works, unless something stands in for
    cuDNN, which compiles only where a GPU is.
    """
    if built_for() != "gpu" or not fits_fused(dtype, head_dim):
        return FusedForms(*["there is none for this type, size or device"] * 3)
    if stands_in():
        return FusedForms()
    # The machine itself must have the GPU on which cuDNN is tried.
    if jax.default_backend() != "gpu":
        return FusedForms(*["there is no GPU here on which to try it"] * 3)
    return _tried(dtype, head_dim)


@functools.cache
def _tried(dtype: jnp.dtype, head_dim: int) -> FusedForms:
    """Tried once, because what cuDNN supports differs by GPU and version: every form is compiled
    with its gradients, run, and compared with plain attention.
    """
    found = fused_problems(dtype, head_dim)
    named = [f"{name}: {problem}" for name, problem in found._asdict().items() if problem]
    if named:
        instead = "plain attention is taken for these" if found.rows else "all is plain"
        warnings.warn(
            f"fused attention of heads of {head_dim} does not work here, {instead} "
            f"({'; '.join(named)})",
            stacklevel=3,
        )
    return found


def fused_problems(dtype: jnp.dtype, head_dim: int, kernel: Kernel = cudnn) -> FusedForms:
    """What is wrong with `kernel`'s values or gradients on small rows."""
    segments = np.where(np.arange(LENGTH) < 20, 1, 2).astype(np.int32) * np.ones((2, 1), np.int32)
    segments[0, 40:] = 0
    lengths = np.array([40, LENGTH], np.int32)
    layouts: tuple[Layout, ...] = (
        {"causal": True},
        {"lengths": lengths},
        {"segments": segments},
    )
    return FusedForms(*(_problem(dtype, head_dim, kernel, x) for x in layouts))


def _problem(dtype: jnp.dtype, head_dim: int, kernel: Kernel, layout: Layout) -> str:
    rng = np.random.default_rng(0)
    draw = lambda heads: rng.normal(size=(2, LENGTH, heads, head_dim)).astype(dtype)  # noqa: E731
    heads = draw(4), draw(2), draw(2)
    try:
        # The compiled program is called itself: this may run while another one is traced.
        program, right = (
            jax.jit(functools.partial(_probed, layout, x)).lower(*heads).compile()
            for x in (kernel, _in_float32)
        )
        error = _apart(program(*heads), right(*heads))
        low = _with_low_scores(*heads)
        finite = all(np.isfinite(np.asarray(x, np.float32)).all() for x in program(*low))
    except Exception as raised:  # cuDNN and XLA raise many kinds; any means: not here.
        return str(raised).splitlines()[0][:200] if str(raised) else type(raised).__name__
    # NaN fails too.
    if not error < 0.05:
        return f"its numbers differ from those of plain attention by {error:.2g}"
    return "" if finite else "it gives no numbers where all scores are low"


def _apart(found: tuple[jax.Array, ...], expected: tuple[jax.Array, ...]) -> float:
    """The largest difference, as a share of the largest number, at least of 1."""
    apart = []
    for one, other in zip(found, expected, strict=True):
        part, right = np.asarray(one, np.float32), np.asarray(other, np.float32)
        apart.append(np.max(np.abs(part - right)) / max(1.0, float(np.max(np.abs(right)))))
    return float(np.max(apart))


def _with_low_scores(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same, with all scores about -120: exp(120) is no float32 number."""
    q, k = q.copy(), k.copy()
    q[..., 0], k[..., 0] = 1, -120 * q.shape[-1] ** 0.5
    return q, k, v


def _probed(
    layout: Layout, kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, ...]:
    """Output and gradients of the tokens that exist."""
    real = np.ones(q.shape[:2], bool)
    if "lengths" in layout:
        real = np.arange(q.shape[1]) < layout["lengths"][:, None]
    if "segments" in layout:
        real = layout["segments"] > 0
    weight = real[:, :, None, None].astype(np.float32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Multiplied, so that a NaN at padding is not lost.
        out = fused_attention(q, k, v, kernel=kernel, **layout).astype(jnp.float32) * weight
        return jnp.sum(out**2), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return (out, *(x.astype(jnp.float32) for x in gradients))


def _in_float32(*heads: jax.Array, **settings: Any) -> jax.Array:
    wide = (x.astype(jnp.float32) for x in heads)
    return jax.nn.dot_product_attention(*wide, implementation="xla", **settings)
