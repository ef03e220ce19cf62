"""Speed of the models: against torch, and of compilation."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from afmrl_jax.config import Execution, RunConfig
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.performance.benchmarks.compile_time import measure_compile
from afmrl_jax.performance.benchmarks.padding import padding_by_stage
from afmrl_jax.performance.benchmarks.workers import Worker, restrict
from afmrl_jax.performance.benchmarks.workload import Size
from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.runtime.hardware import cores
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    from afmrl_jax.performance.benchmarks.jax_side import JaxSide
    from afmrl_jax.performance.benchmarks.torch_side import TorchSide

Part = Literal["forward", "train", "decode", "compile", "padding"]
FIGURES = {
    "forward": "forward_speedup_vs_torch",
    "train": "train_step_speedup_vs_torch",
    "decode_b1": "decode_speedup_b1",
    "decode_b16": "decode_speedup_b16",
}
AGREE = {"forward": 1e-4, "train": 1e-4}
"""Largest difference of both sides' vectors and losses. Tokens are compared one by one."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    parts: tuple[Part, ...] = ("forward", "train", "decode", "compile", "padding")
    repeats: int = 9
    """Pairs of measurements against torch; the median of their ratios is reported."""
    compile_repeats: int = 3
    """Fresh processes of each kind for compile times."""
    padding_batches: int = 48
    """Batches of each stage of the demo whose padding is counted."""
    threads: int = 0
    """CPU cores of either side; 0 for all."""
    scan: bool = False
    """Whether our side loops over layers at run time; torch's layers are unrolled."""
    size: Size = dataclasses.field(default_factory=Size)
    """The model that is compared with torch."""
    layers: int = 28
    """Layers of the model whose compilation is timed; Qwen2-VL-2B has 28."""


def _our_side(folder: Path, size: Size, scan: bool, chosen: list[int]) -> JaxSide:
    restrict(chosen)
    jax.config.update("jax_platforms", "cpu")
    from afmrl_jax.performance.benchmarks.jax_side import JaxSide

    return JaxSide(folder, size, Execution(scan=scan))


def _their_side(folder: Path, size: Size, chosen: list[int]) -> TorchSide:
    restrict(chosen)
    from afmrl_jax.performance.benchmarks.torch_side import TorchSide

    return TorchSide(folder, size, len(chosen))


def compare(settings: Settings) -> tuple[dict[str, float], list[JsonObject]]:
    """Figures and details of the parts that torch also computes, on the same weights.

    Raises:
        ConfigError: torch, transformers or peft is missing.
        RuntimeError: the sides disagree.
    """
    asked = [p for p in FIGURES if p.partition("_b")[0] in settings.parts]
    if not asked:
        return {}, []
    for name in ("torch", "peft"):
        if not _installed(name):
            raise ConfigError(
                f"comparing with torch needs {name}: `pip install 'afmrl-jax[bench]'`, or choose "
                "`--parts compile`"
            )
    chosen = cores()[: settings.threads or None]
    figures, details = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        architecture = Architecture.of(settings.size.config)
        save_model(folder, architecture, architecture.init(0))
        sides = (folder, settings.size)
        with (
            Worker(_our_side, *sides, settings.scan, chosen) as ours,
            Worker(_their_side, *sides, chosen) as theirs,
        ):
            for part in asked:
                detail = _pairs(part, ours, theirs, settings)
                figures[FIGURES[part]] = detail["speedup"]["median"]
                detail |= {"threads": len(chosen), "scan": settings.scan}
                details.append(detail | {"shape": settings.size.describe()})
    return figures, details


def _pairs(part: str, ours: Worker, theirs: Worker, settings: Settings) -> JsonObject:
    found, expected = (np.asarray(side.call("prepare", part)) for side in (ours, theirs))
    detail: JsonObject = {"part": part}
    if part in AGREE:
        difference = float(np.abs(found - expected).max())
        if not difference < AGREE[part]:
            raise RuntimeError(
                f"{part}: the sides differ by {difference:.2g}; timing would be meaningless"
            )
        detail["largest_difference"] = difference
    else:
        detail["same_tokens"] = float((found == expected).mean())
    samples: tuple[list[float], list[float]] = ([], [])
    with Progress(part, settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            for side, kept in zip((ours, theirs), samples, strict=True):
                # At the first of two calls the caches still hold the other side's data.
                side.call("seconds", part)
                kept.append(side.call("seconds", part))
            progress.update(done)
    speedup = ratios(samples[1], samples[0])
    log_info(f"{part}: {speedup['median']:.2f} times as fast as torch")
    return detail | {
        "our_seconds": spread(samples[0]),
        "torch_seconds": spread(samples[1]),
        "speedup": speedup,
        "least_seconds": round(ours.call("least", part), 5),
        "our_profile": ours.call("profile", part),
        "torch_profile": theirs.call("profile", part),
    }


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure the chosen parts, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written, or a library is missing; before anything is measured.
    """
    check_writable(out, is_record_of("models"))
    figures, details = compare(settings)
    if "compile" in settings.parts:
        found, detail = measure_compile(settings.layers, settings.compile_repeats)
        figures, details = figures | found, [*details, *detail]
    if "padding" in settings.parts:
        found, detail = padding_by_stage(RunConfig.demo(), settings.padding_batches)
        figures, details = figures | found, [*details, *detail]
    write_record(out, "models", figures, details)
    return figures
