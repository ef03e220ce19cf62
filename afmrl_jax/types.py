"""Types used throughout the package: axis letters of shapes, arrays, pytrees and JSON.

b batch, q query, c candidate, t tokens, d embed, h heads, k head_dim, v vocabulary, p patches,
g group, a attribute tokens, n generated tokens, m gallery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Bool, Float, Int, Real, UInt8

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

AnyArray = Any
"""NumPy's on the host, JAX's on a device, or a mere shape: whatever has a shape and a dtype. Not a
union of the types, because Grain's workers import this file and JAX must stay out of them."""

JsonObject = dict[str, Any]
"""An object of a JSON file, as `json.loads` gives it or `json.dumps` takes it."""

Plain = str | int | float | bool
"""A value of a catalogue that nothing but people read."""

Modality = Literal["both", "text", "image"]
"""What is shown of a listing: picture and title, or one of them alone."""

Role = Literal["embedder", "generator"]
"""What a model of a run serves as."""

__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "Float",
    "Int",
    "JsonObject",
    "Modality",
    "Plain",
    "PyTree",
    "Real",
    "Role",
    "UInt8",
]


def __getattr__(name: str) -> type:
    """`Array` and `PyTree`, by whose import jaxtyping imports JAX."""
    if name in ("Array", "PyTree"):
        import jaxtyping

        found: type = getattr(jaxtyping, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
