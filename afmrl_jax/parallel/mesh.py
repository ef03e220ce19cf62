"""The device mesh: the one place that makes it, and the rules that fit arrays to it.

Two axes: `data` splits the batch and, as in FSDP, the parameters; `model` splits matrices inside a
layer (tensor parallelism).
"""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from afmrl_jax.errors import ConfigError

AXES = ("data", "model")


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh over the first data * model devices.

    Args:
        data: size of the `data` axis; -1 for all devices that `model` leaves.
        model: size of the `model` axis.

    Raises:
        ConfigError: there are not that many devices, or `model` does not divide their number.
    """
    devices = jax.devices()
    if model < 1 or (data < 1 and data != -1):
        raise ConfigError(f"mesh sizes must be positive (or data -1): data {data}, model {model}")
    if data == -1:
        if len(devices) % model:
            raise ConfigError(f"a model axis of {model} does not divide {len(devices)} devices")
        data = len(devices) // model
    if data * model > len(devices):
        raise ConfigError(
            f"a mesh of {data} x {model} needs {data * model} devices, found {len(devices)}"
        )
    # Auto: the compiler propagates shardings. Explicit axes, JAX's default, would make them part
    # of every type, and the modules know nothing of the mesh.
    return jax.make_mesh(
        (data, model),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[: data * model],
    )


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
