"""Predict step time and efficiency on 8, 64 and 256 chips, and write a page about it.

    afmrl bench scaling            # compiles what --out lacks
    afmrl bench scaling --again    # recompiles everything, minutes on two cores

The training steps of the published sizes are lowered from shapes alone for meshes of simulated
devices and partitioned by XLA, and the bytes each device would send are counted
(performance/collectives.py). Together with the useful operations (performance/flops.py) and the
vendors' speeds (performance/accelerators.py), this gives a step's time. Each program is saved in
the JSON file as it is compiled, so the same command resumes an interrupted run; the assumptions
are options, and changing them recompiles nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from afmrl_jax.parallel.mesh import simulate_devices
from afmrl_jax.performance.record import check_writable
from afmrl_jax.performance.request import Request
from afmrl_jax.performance.sweep.page import HEAD, page
from afmrl_jax.performance.sweep.predict import Assumptions
from afmrl_jax.performance.sweep.programs import Case, exchanged
from afmrl_jax.runtime.files import write_json, write_text
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.outputs import is_marked, whole_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance, versions
from afmrl_jax.types import JsonObject

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
"""Sizes of `data` and `model` for which each case is compiled."""


@dataclass(frozen=True)
class Scaling:
    """Predicted step time and efficiency of training on 8, 64 and 256 chips, as a page.

    The training steps of the published sizes are compiled for simulated devices, and the bytes each
    device would send are counted. With the vendors' speeds this gives a step's time.
    """

    given: Assumptions = field(default_factory=Assumptions)
    out: Path = Path("runs/bench_scaling.json")
    """JSON file of the compiled programs' figures; the next call reads it back."""
    page: Path = Path("runs/bench_scaling.md")
    """The page to write."""
    most: int = 256
    """Largest number of chips for which programs are compiled."""
    again: bool = False
    """Recompile everything."""

    def execute(self) -> None:
        """Compile what is missing, predict, write the page."""
        parts = {"programs", "versions", "assumptions"}
        check_writable(self.out, lambda x: parts <= whole_record(x).keys())
        check_writable(self.page, lambda x: is_marked(x, HEAD.splitlines()[0]))
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

    def _write(self, kept: JsonObject) -> None:
        given = dataclasses.asdict(self.given)
        record = provenance() | {"assumptions": given}
        write_json(self.out, record | {"programs": kept})


def _wanted(most: int) -> list[tuple[str, Case, tuple[int, int]]]:
    return [
        (f"{case.name} on {data} x {model}", case, (data, model))
        for case in CASES
        for data, model in MESHES[case.name]
        if data * model <= most
    ]


def _kept(path: Path) -> JsonObject:
    """Programs of an earlier run with the same versions."""
    if not path.is_file():
        return {}
    found = read_json(path)
    return found["programs"] if found["versions"] == versions() else {}
