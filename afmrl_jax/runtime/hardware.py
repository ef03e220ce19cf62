"""The machine on which a measurement was taken."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax

from afmrl_jax.types import JsonObject


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
