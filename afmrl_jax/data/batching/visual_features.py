"""What a vision tower gives of pictures, on its way to the decoder."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from afmrl_jax.types import AnyArray, Array, Float


class VisualFeatures(NamedTuple):
    """One or more arrays of merged pictures; s and d alike in all of them.

    It travels as one pytree: through chunks, the policy gradient, sharding and sampling. Only a
    family's tower and its decoder look inside.
    """

    tokens: Float[AnyArray, "n s d"]
    """What takes the picture places of a sequence."""
    deep: tuple[Float[AnyArray, "n s d"], ...] = ()
    """What a decoder adds at the picture places after its first layers, one array a layer; empty
    for families whose decoder takes nothing more."""

    def side_by_side(self) -> Float[Array, "n s w"]:
        """All arrays as one, to be kept: w is d for each of them."""
        return jnp.concatenate([self.tokens, *self.deep], axis=-1)

    def apart(self, width: int) -> VisualFeatures:
        """What was kept `side_by_side`, as arrays of this width again; itself where it is not."""
        count = self.tokens.shape[-1] // width
        if count == 1:
            return self
        first, *deep = (self.tokens[..., n * width : (n + 1) * width] for n in range(count))
        return VisualFeatures(first, tuple(deep))
