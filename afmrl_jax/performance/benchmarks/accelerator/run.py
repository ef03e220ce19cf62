"""Measure an accelerator within a time limit: what matters most first, a file after each part."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import jax
import numpy as np

from afmrl_jax.errors import ConfigError
from afmrl_jax.models.qwen_vl.fused_probe import fused_forms
from afmrl_jax.performance.benchmarks.accelerator import kernels, models
from afmrl_jax.performance.benchmarks.accelerator.kernels import KernelSizes, Measured
from afmrl_jax.performance.benchmarks.accelerator.models import Load, device_memory
from afmrl_jax.performance.benchmarks.accelerator.page import page
from afmrl_jax.performance.benchmarks.accelerator.pictures import images_per_second
from afmrl_jax.performance.benchmarks.accelerator.reinforcement import RarSizes, reinforcement
from afmrl_jax.performance.record import is_record_of, write_record
from afmrl_jax.runtime.files import write_text
from afmrl_jax.runtime.hardware import cores
from afmrl_jax.runtime.outputs import require_own_output, whole_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject

RECORD = "accelerator.json"
PAGE = "accelerator.md"
Part = Literal[
    "environment",
    "peaks",
    "agreement",
    "decode",
    "train",
    "rar",
    "reward",
    "agcl_16k",
    "bm25",
    "exact",
    "agcl_64k",
    "input",
]
ORDER: tuple[Part, ...] = get_args(Part)
"""By value: what is left out when time is short comes last."""
NEEDED: dict[Part, float] = {
    "decode": 100.0,
    "train": 60.0,
    "rar": 150.0,
    "exact": 50.0,
    "agcl_64k": 60.0,
}
"""Seconds that must be left for a part to begin at real sizes; 20 for any other."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long it may take."""

    limit: float = 570.0
    """Seconds. A part for which too little is left is skipped, and the record says so; the same
    command with the same `--out` measures what is missing."""
    parts: tuple[Part, ...] = ORDER
    """Measured in this order."""
    sizes: Literal["auto", "real", "tiny"] = "auto"
    """`real` are the published ones of Qwen2-VL-2B and Qwen2.5-VL-3B. `tiny` rehearses all parts
    anywhere. `auto`: real, but tiny on a CPU."""
    repeats: int = 5
    """Measurements of each part; medians are reported."""


@dataclass(frozen=True)
class Scale:
    """Sizes of all parts."""

    decode: Load
    train: Load
    rar: RarSizes
    kernels: KernelSizes
    side: int
    """Of the matrices with which the peaks are measured."""
    pictures: int

    @classmethod
    def real(cls) -> Scale:
        """Published sizes."""
        return cls(Load.generator(), Load.embedder(), RarSizes(), KernelSizes(), 8192, 256)

    @classmethod
    def tiny(cls) -> Scale:
        """For a rehearsal."""
        loads = Load.tiny(adapted=False), Load.tiny(adapted=True)
        return cls(*loads, RarSizes.tiny(), KernelSizes.tiny(), 128, 8)


class Bench:
    """The parts, and what has been found so far."""

    def __init__(self, settings: Settings, folder: Path):
        small = jax.default_backend() == "cpu"
        small = small if settings.sizes == "auto" else settings.sizes == "tiny"
        self._settings, self._folder = settings, folder
        self._sizes = "tiny" if small else "real"
        self._scale = Scale.tiny() if small else Scale.real()
        self._began = time.monotonic()
        self.found: dict[str, JsonObject] = {}
        """By part: status, figures, seconds and details."""

    @property
    def figures(self) -> dict[str, float]:
        """Of all parts that were measured."""
        kept = [x["figures"] for x in self.found.values() if x["status"] == "measured"]
        return {name: value for own in kept for name, value in own.items()}

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self._settings.limit - (time.monotonic() - self._began)

    def resume(self) -> None:
        """Take over what an earlier call with the same code measured on the same device."""
        path = self._folder / RECORD
        if not path.exists():
            return
        known = whole_record(path)
        if any(known.get(name) != value for name, value in provenance().items()):
            return
        for detail in known["details"]:
            if detail["status"] == "measured" and detail["sizes"] == self._sizes:
                self.found[detail["part"]] = detail

    def run(self) -> None:
        """All parts that are due."""
        for name in ORDER:
            if name not in self._settings.parts or name in self.found:
                continue
            needed = NEEDED.get(name, 20.0) if self._sizes == "real" else 0.0
            if self.left < needed:
                log_info(f"{name}: skipped, {max(0, self.left):.0f} of {needed:.0f} s left")
                reason = f"it may take {needed:.0f} s, and less was left"
                self._keep(name, {"status": "skipped", "reason": reason})
                continue
            self._keep(name, self._measure(name))
            # The next part needs the memory: neither programs nor weights in circles may stay.
            jax.clear_caches()
            gc.collect()

    def _measure(self, name: Part) -> JsonObject:
        began = time.monotonic()
        try:
            figures, detail = self._work(name)()
            found: JsonObject = {"status": "measured", "figures": figures, **detail}
            log_info(f"{name}: " + ", ".join(f"{n} {x:.4g}" for n, x in figures.items()))
        except Exception as error:  # One part that fails must not cost the others their time.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            log_info(f"{name}: failed, {reason}")
            found = {"status": "failed", "reason": reason, "trace": traceback.format_exc()[-2000:]}
        return found | {"wall_seconds": round(time.monotonic() - began, 1)}

    def _keep(self, name: Part, found: JsonObject) -> None:
        device = jax.devices()[0].device_kind
        self.found[name] = {**found, "part": name, "sizes": self._sizes}
        ordered = [self.found[x] for x in ORDER if x in self.found]
        write_record(self._folder / RECORD, "accelerator", self.figures, ordered)
        write_text(self._folder / PAGE, page(device, self._sizes, ordered))

    def _peak(self, name: str) -> float:
        if name not in self.figures:
            raise ConfigError("needs the part peaks: add it to --parts")
        return self.figures[name] * 1e12

    def _work(self, name: Part) -> Callable[[], Measured]:
        scale, repeats, sizes = self._scale, self._settings.repeats, self._scale.kernels
        measured: dict[Part, Callable[[], Measured]] = {
            "environment": _environment,
            "peaks": partial(models.peaks, scale.side, repeats),
            "agreement": partial(kernels.agreement, sizes),
            "decode": lambda: models.decode(
                scale.decode, self._peak("bandwidth_tb_per_second"), repeats
            ),
            "train": lambda: models.train_step(scale.train, self._peak("peak_tflops"), repeats),
            "rar": lambda: reinforcement(scale.rar, self._peak("peak_tflops"), repeats),
            "reward": lambda: self._timed("reward", kernels.reward_time(sizes, repeats)),
            "agcl_16k": lambda: self._timed(
                "agcl_16k", kernels.agcl_time(sizes.agcl[0], sizes, repeats)
            ),
            "agcl_64k": lambda: self._timed(
                "agcl_64k", kernels.agcl_time(sizes.agcl[1], sizes, repeats)
            ),
            "bm25": lambda: self._timed("bm25", kernels.bm25_time(sizes, 4 * repeats)),
            "exact": lambda: self._exact(kernels.exact_time(sizes, repeats)),
            "input": partial(images_per_second, scale.pictures, cores()),
        }
        return measured[name]

    def _timed(self, name: str, timed: tuple[list[float], JsonObject]) -> Measured:
        figures, detail = kernels.figures_of(name, timed)
        if "flops" in detail:
            figures[f"{name}_share_of_roofline"] = self._share(*timed)
        return figures, detail

    def _exact(self, timed: tuple[list[float], JsonObject]) -> Measured:
        seconds, detail = timed
        figures = {
            "exact_queries_per_second": detail["queries"] / float(np.median(seconds)),
            "exact_share_of_roofline": self._share(*timed),
        }
        return figures, kernels.figures_of("exact", timed)[1]

    def _share(self, seconds: list[float], detail: JsonObject) -> float:
        peaks = self._peak("peak_tflops"), self._peak("bandwidth_tb_per_second")
        return kernels.share_of_roofline(detail, float(np.median(seconds)), *peaks)


def _environment() -> Measured:
    """What the device is, and whether fused attention works on it."""
    kind = jax.numpy.dtype("bfloat16")
    forms = {str(n): fused_forms(kind, n) for n in (80, 128)}
    about = {
        "fused_attention": {n: found.rows for n, found in forms.items()},
        "fused_problems": {n: found._asdict() for n, found in forms.items()},
    }
    return {}, {"devices": jax.device_count(), **about, **device_memory()}


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure what is due into the folder `out`: accelerator.json and accelerator.md.

    Returns:
        All figures in the record.

    Raises:
        ConfigError: `out` is not a folder of this command's.
    """
    require_own_output(out, "afmrl bench accelerator", folder=_own_files)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(settings, out)
    bench.resume()
    bench.run()
    print((out / PAGE).read_text(encoding="utf-8"))
    return bench.figures


def _own_files(folder: Path) -> tuple[str, ...] | None:
    return (RECORD, PAGE) if is_record_of("accelerator")(folder / RECORD) else None
