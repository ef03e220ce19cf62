"""What attention is told in a training step, as a GPU with cuDNN gets it.

cuDNN compiles only where a GPU is, so the programs that are compiled elsewhere have plain attention
in its place. The step is therefore traced once more with a kernel that only notes its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from afmrl_jax.models.qwen_vl.fused_attention import PAIRS_AT_ONCE, standing_in
from afmrl_jax.performance.compiled.checks import Finding


@contextmanager
def noting_masks() -> Iterator[list[Finding]]:
    """Inside, whatever is traced takes the fused form of attention; yields the masks it is given.

    A mask for few rows at a time is allowed, see `fused_attention`: bins that several pictures
    share cannot do without.
    """
    found: list[Finding] = []

    def note(what: str, shape: tuple[int, ...], dtype: DTypeLike, q: jax.Array) -> None:
        if len(shape) < 2 or shape[0] * shape[-1] * shape[-2] <= PAIRS_AT_ONCE:
            return
        one = Finding(
            "mask",
            f"dot_product_attention of {q.dtype}{list(q.shape)}",
            f"a {what} {jnp.dtype(dtype)}{list(shape)} over pairs of tokens is given to it",
            "give lengths and causality, or windows as rows of their own",
        )
        # A layer is traced several times: forward, again for the gradient, for the branches.
        if one not in found:
            found.append(one)

    def kernel(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        **_: object,
    ) -> jax.Array:
        for what, given in (("mask", mask), ("bias", bias)):
            if given is not None:
                note(what, given.shape, given.dtype, q)
        # Of the right shape and with gradients by all three; the numbers do not matter.
        return q + (jnp.sum(k) + jnp.sum(v)).astype(q.dtype)

    with standing_in(kernel):
        yield found
