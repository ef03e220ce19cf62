"""Axis letters used in shapes throughout the package, and the array types built on them.

b batch, q query, c candidate, t tokens, d embed, h heads, k head_dim, v vocabulary, p patches,
g group, a attribute tokens, n generated tokens, m gallery.
"""

from jaxtyping import Array, Bool, Float, Int

__all__ = ["Array", "Bool", "Float", "Int"]
