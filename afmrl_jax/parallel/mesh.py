"""The device mesh: the one place that makes it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.errors import ConfigError
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.runtime.distributed import is_multiprocess


def host_share(mesh: Mesh) -> HostShare:
    """The parts of a batch that lie on devices of this process."""
    here = jax.process_index()
    places = mesh.devices.reshape(mesh.shape[AXES[0]], -1)
    own = [n for n, row in enumerate(places) if any(d.process_index == here for d in row)]
    return HostShare(len(places), tuple(own))


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the first data * model devices.

    Args:
        data: size of the `data` axis; -1 for all devices that `model` leaves.
        model: size of the `model` axis.
        devices: to choose from; JAX's by default.

    Raises:
        ConfigError: there are not that many devices, `model` does not divide their number, or
            those of some process would be left out.
    """
    devices = list(jax.devices() if devices is None else devices)
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
    if is_multiprocess() and data * model != len(devices):
        raise ConfigError(
            f"a mesh of {data} x {model} leaves devices out, and each of the "
            f"{jax.process_count()} processes needs its own in it: {len(devices)} in all"
        )
    # Auto: the compiler propagates shardings. Explicit axes, JAX's default, would make them part
    # of every type, and the modules know nothing of the mesh.
    return jax.make_mesh(
        (data, model),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[: data * model],
    )


def simulate_devices(count: int) -> None:
    """Let this process compile for `count` CPU devices; before JAX is used for anything else.

    Raises:
        ConfigError: JAX runs already, with fewer devices.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if len(jax.devices()) < count:
            raise ConfigError(
                f"a mesh of {count} simulated devices must be asked for before JAX has started"
            ) from error
