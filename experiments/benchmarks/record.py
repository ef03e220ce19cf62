"""What a benchmark writes: machine, versions, samples with their spread."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from afmrl_jax.errors import ConfigError
from afmrl_jax.files import write_json

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "peft", "numpy")


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of some samples, in their own unit."""
    values = np.asarray(samples, float)
    return {
        "median": round(float(np.median(values)), 5),
        "min": round(float(values.min()), 5),
        "max": round(float(values.max()), 5),
        "samples": len(values),
    }


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster the second is: the spread of the ratios of paired seconds.

    Example:
        >>> ratios([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])["median"]
        3.0
    """
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])


def machine() -> dict[str, Any]:
    """The machine that measures; `cores` are those that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": platform.platform(),
        "processor": models[0] if models else platform.processor(),
        "cores": len(cores()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def cores() -> list[int]:
    """Numbers of the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def versions() -> dict[str, str]:
    """Python and the libraries that decide the speed, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is measured.

    Raises:
        ConfigError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; create it, or choose another --out")


def write_record(
    path: Path,
    bench: str,
    figures: Mapping[str, float],
    details: Sequence[Mapping[str, Any]],
) -> None:
    """Write a benchmark's JSON, whole or not at all.

    Args:
        path: of the file.
        bench: name of the benchmark.
        figures: the numbers that are quoted, by name.
        details: shapes and spread of every part.
    """
    device = jax.devices()[0]
    write_json(
        path,
        {
            "bench": bench,
            "machine": machine() | {"device": f"{device.platform}: {device.device_kind}"},
            "versions": versions(),
            "figures": dict(figures),
            "details": list(details),
        },
    )
