"""What a vision tower gives of pictures, on its way to the decoder."""

from __future__ import annotations

from typing import NamedTuple

from afmrl_jax.types import AnyArray, Float


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
