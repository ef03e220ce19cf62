"""How arrays lie on a mesh: its axes, and the rules that fit arrays to them.

Two axes: `data` splits the batch and, as in FSDP, the parameters; `model` splits matrices inside a
layer (tensor parallelism).
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "model")


def fit_spec(spec: PartitionSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """`spec` without the axes that cannot split `shape`: those dimensions are replicated.

    A dimension that its axes do not divide (the last batch, a demo's 96 columns on 64 devices)
    stays whole, because uneven shards are not supported by every operation. Of several axes on one
    dimension the first ones that divide are kept.

    Example:
        >>> tuple(fit_spec(PartitionSpec("data", "model"), (8, 3), {"data": 4, "model": 2}))
        ('data', None)

    Args:
        spec: the wish.
        shape: of the array.
        sizes: size of each mesh axis; an axis that is not named has size 1.

    Raises:
        ValueError: `spec` has more entries than `shape` has dimensions.
    """
    if len(spec) > len(shape):
        raise ValueError(f"{spec} does not fit an array of shape {shape}")
    entries: list[str | tuple[str, ...] | None] = []
    for entry, length in zip(spec, shape, strict=False):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        kept: tuple[str, ...] = ()
        for name in names:
            if name in sizes and length % math.prod(sizes[n] for n in (*kept, name)) == 0:
                kept += (name,)
        entries.append(None if not kept else kept[0] if len(kept) == 1 else kept)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Ask the compiler to lay out an intermediate as `spec`; the identity when no mesh is set.

    The mesh is the one of the enclosing `jax.set_mesh`, so a function that calls this also runs
    without any. Axes that do not divide their dimension are dropped, see `fit_spec`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fit_spec(spec, x.shape, dict(mesh.shape)))


def rows_over_data(x: jax.Array) -> jax.Array:
    """An intermediate [b ...] split by rows, and whole along every other dimension.

    Weights are split over `data` too, for storage. Left to itself the compiler may keep them
    where they are and instead give every device all rows of a slice of the features, which takes
    as many times more memory as there are devices; with rows held to `data` it gathers one
    layer's weights, uses them and lets them go.
    """
    return constrain(x, PartitionSpec("data"))


def splits_matrices() -> bool:
    """Whether the mesh of the enclosing `jax.set_mesh` splits matrices inside a layer."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXES[1], 1) > 1
