"""The machine on which a measurement was taken, and the kind that programs are built for."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import jax

from afmrl_jax.types import JsonObject

Backend = Literal["cpu", "gpu", "tpu"]
"""Kinds of devices, as `jax.default_backend` names them."""

_CHOSEN: ContextVar[Backend | None] = ContextVar("chosen backend", default=None)


def built_for() -> str:
    """The kind of device that programs are built for: JAX's default, or that of `building_for`.

    Whatever chooses a form of a computation by the kind of device asks here, not JAX.
    """
    return _CHOSEN.get() or jax.default_backend()


@contextmanager
def building_for(backend: Backend) -> Iterator[None]:
    """Inside, functions choose the forms that are best on another kind of device.

    A program can so be compiled for a device that this machine lacks (`performance/compiled`);
    it cannot be run here.

    Example:
        >>> with building_for("tpu"):
        ...     built_for()
        'tpu'
    """
    token = _CHOSEN.set(backend)
    # What JAX has traced holds the forms for another kind.
    jax.clear_caches()
    try:
        yield
    finally:
        _CHOSEN.reset(token)
        jax.clear_caches()


def cores() -> list[int]:
    """Numbers of the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def machine() -> JsonObject:
    """System, processor, cores that this process may use, memory, and JAX's first device."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    device = jax.devices()[0]
    return {
        "system": platform.platform(),
        "processor": models[0] if models else platform.processor(),
        "cores": len(cores()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": f"{device.platform}: {device.device_kind}",
    }
