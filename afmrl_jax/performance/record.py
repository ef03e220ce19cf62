"""What a benchmark writes: commit, machine, versions, samples with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.outputs import OwnFile, require_own_output, whole_record
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of samples, in their own unit."""
    values = np.asarray(samples, float)
    # Five digits of it, however small it is.
    median, least, most = (float(f"{x:.5g}") for x in np.quantile(values, [0.5, 0, 1]))
    return {
        "median": median,
        "min": least,
        "max": most,
        "samples": len(values),
    }


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster the second side is: the spread of the ratios of paired seconds.

    Example:
        >>> ratios([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])["median"]
        3.0
    """
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])


FOLDER = Path("runs")
"""Where benchmarks write by default; it is made where it is missing."""


def check_writable(path: Path, own: OwnFile) -> None:
    """Reject a file that cannot or must not be written, before anything is measured.

    Args:
        path: of the file.
        own: whether an existing file is an earlier output of the benchmark.

    Raises:
        ConfigError: its folder does not exist, or it is something else than an earlier output.
    """
    if path.parent == FOLDER:
        FOLDER.mkdir(exist_ok=True)
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; create it, or choose another --out")
    require_own_output(path, "afmrl bench", file=own)


def is_record_of(bench: str) -> OwnFile:
    """Recognizes the JSON of a benchmark."""
    return lambda path: whole_record(path).get("bench") == bench


def write_record(
    path: Path,
    bench: str,
    figures: Mapping[str, float],
    details: Sequence[JsonObject],
) -> None:
    """Write a benchmark's JSON, whole or not at all.

    Args:
        path: of the file.
        bench: name of the benchmark.
        figures: the numbers that are quoted, by name.
        details: shapes and spread of each part.
    """
    write_json(
        path,
        {
            "bench": bench,
            **provenance(),
            "figures": dict(figures),
            "details": list(details),
        },
    )
