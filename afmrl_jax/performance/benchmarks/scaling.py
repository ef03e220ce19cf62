"""Predict step time and efficiency on 8, 64 and 256 chips, and write a page about it.

    afmrl bench scaling            # compiles what --out lacks
    afmrl bench scaling --again    # compiles everything anew, minutes on two cores

The training steps of the published sizes are lowered from shapes alone for meshes of simulated
devices, partitioned by XLA, and what each device would send is counted
(performance/collectives.py). With useful operations (performance/flops.py) and the speeds that
makers state (performance/accelerators.py) that gives a step's time. Programs are kept in
the JSON file, one after the other, so that an interrupted run goes on with the same command; the
assumptions are options, and changing them compiles nothing anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afmrl_jax.parallel.mesh import simulate_devices
from afmrl_jax.performance.plan import Request
from afmrl_jax.performance.record import check_writable, versions
from afmrl_jax.performance.sweep.page import page
from afmrl_jax.performance.sweep.predict import Assumptions
from afmrl_jax.performance.sweep.programs import Case, exchanged
from afmrl_jax.runtime.files import read_json, write_json, write_text
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.runtime.progress import log_info

R = Request("qwen2vl_2b", "agcl", batch_size=16, trained="lora")
G = Request("qwen2_5vl_3b", "distill", batch_size=8, trained="decoder")
CASES = (
    Case("R, at once", R),
    Case("G, distilled", G),
    Case("R, two chunks", R, chunks=2),
)
MESHES: dict[str, tuple[tuple[int, int], ...]] = {
    "R, at once": ((8, 1), (64, 1), (256, 1), (2, 4), (16, 4), (64, 4)),
    "G, distilled": ((8, 1), (64, 1), (256, 1), (2, 4), (16, 4)),
    "R, two chunks": ((8, 1), (64, 1), (256, 1)),
}
"""Sizes of `data` and `model` that each case is compiled for."""


@dataclass(frozen=True)
class Scaling:
    """Predicted step time and efficiency of training on 8, 64 and 256 chips, as a page.

    The training steps of the published sizes are compiled for simulated devices, and what each
    device would send is counted. With the speeds that makers state that gives a step's time.
    """

    given: Assumptions = field(default_factory=Assumptions)
    out: Path = Path("bench_scaling.json")
    """JSON file with what was compiled; it is read again by the next call."""
    page: Path = Path("bench_scaling.md")
    """The page to write."""
    most: int = 256
    """Chips up to which programs are compiled."""
    again: bool = False
    """Compile everything anew."""

    def execute(self) -> None:
        """Compile what is missing, predict, write the page."""
        for path in (self.out, self.page):
            check_writable(path)
        kept = {} if self.again else _kept(self.out)
        simulate_devices(self.most)
        for name, case, mesh in _wanted(self.most):
            if name not in kept:
                log_info(f"compiling {name}")
                kept[name] = exchanged(case, *mesh)
                self._write(kept)
        names = [name for name, _, _ in _wanted(self.most)]
        self._write(kept)
        programs = [(case, mesh, kept[name]) for name, case, mesh in _wanted(self.most)]
        write_text(self.page, page(programs, self.given))
        log_info(f"{len(names)} programs; wrote {self.page}")

    def _write(self, kept: dict[str, Any]) -> None:
        given = dataclasses.asdict(self.given)
        record = {"machine": machine(), "versions": versions(), "assumptions": given}
        write_json(self.out, record | {"programs": kept})


def _wanted(most: int) -> list[tuple[str, Case, tuple[int, int]]]:
    return [
        (f"{case.name} on {data} x {model}", case, (data, model))
        for case in CASES
        for data, model in MESHES[case.name]
        if data * model <= most
    ]


def _kept(path: Path) -> dict[str, Any]:
    """Programs of an earlier run with the same versions."""
    if not path.is_file():
        return {}
    found = read_json(path)
    return found["programs"] if found["versions"] == versions() else {}
