"""Accelerators that programs are compiled for on a machine without one."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Literal, get_args

import jax
from jax.experimental import topologies

from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.hardware import Backend

Name = Literal["h100", "h200", "v5e"]
CUDA = (
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
    "nvidia-cuda-runtime",
)
"""Packages that compile for a GPU; none of them needs a driver."""


@dataclass(frozen=True)
class Target:
    """A kind of accelerator."""

    name: Name
    backend: Backend
    packages: tuple[str, ...]
    extra: str
    """Of this package; it installs those."""


TARGETS: dict[str, Target] = {
    "h100": Target("h100", "gpu", CUDA, "compiled"),
    "h200": Target("h200", "gpu", CUDA, "compiled"),
    "v5e": Target("v5e", "tpu", ("libtpu",), "tpu"),
}


def target(name: str) -> Target:
    """A target by its name.

    Raises:
        ConfigError: there is no such target.
    """
    if name not in TARGETS:
        raise ConfigError(f"no target {name!r}; choose from {', '.join(get_args(Name))}")
    return TARGETS[name]


def check_installed(
    aim: Target, version: Callable[[str], str] = importlib.metadata.version
) -> None:
    """Refuse a target that cannot be compiled for here, before anything is traced.

    Args:
        aim: what is compiled for.
        version: of an installed package.

    Raises:
        ConfigError: a package is missing, or JAX's plugin is another version than JAX.
    """
    remedy = f"`pip install 'afmrl-jax[{aim.extra}]'`"
    missing, other = [], []
    for name in aim.packages:
        try:
            found = version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name.startswith("jax-") and found != jax.__version__:
            other.append(f"{name} {found}")
    if missing:
        raise ConfigError(f"compiling for {aim.name} needs {', '.join(missing)}: {remedy}")
    if other:
        raise ConfigError(
            f"compiling for {aim.name} needs the plugin of JAX {jax.__version__}, found "
            f"{', '.join(other)}: {remedy}"
        )


def devices(aim: Target, count: int) -> list[jax.Device]:
    """Descriptions of `count` such devices; arrays cannot be put on them.

    Raises:
        ConfigError: see `check_installed`.
    """
    check_installed(aim)
    if aim.backend == "tpu":
        # Where no chip is, libtpu would wait minutes for the service that describes it.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        # The smallest slice of which one chip can be described is a square of four.
        shape = "2x2" if count <= 4 else "2x4"
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{aim.name}:{shape}")
        return list(found.devices)[:count]
    text = resources.files(__package__).joinpath("targets", f"{aim.name}.txtpb")
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=text.read_text(encoding="utf-8"),
        topology=f"1x1x{count}",
    )
    return list(described.devices)
