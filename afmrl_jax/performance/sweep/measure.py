"""Measuring one row of the sweep."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax.data.sources.batches import Batch
from afmrl_jax.data.sources.loader import Source, iterate
from afmrl_jax.errors import RunError
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.performance.accelerators import CHIPS, chip_of
from afmrl_jax.performance.collectives import bytes_by_axis, collectives
from afmrl_jax.performance.flops import utilisation
from afmrl_jax.performance.memory import bytes_here
from afmrl_jax.performance.record import spread
from afmrl_jax.performance.sweep.cell import Cell
from afmrl_jax.performance.sweep.counts import Counts, count
from afmrl_jax.performance.sweep.tables import MEASURED
from afmrl_jax.performance.sweep.work import Step, Work
from afmrl_jax.types import JsonObject

WARM_UP = 2
"""Steps that are not timed."""


def capacity(cell: Cell) -> int:
    """Bytes that JAX may use of one device of the cell's mesh."""
    data, model = cell.request.axes
    return bytes_here(data * model)


def product_peak(side: int = 1536, repeats: int = 9) -> float:
    """FLOP/s of the fastest product of two [side side], in float32 and bfloat16.

    The fastest, not the median, because other work can only slow it down.
    """
    best = 0.0
    for dtype in (jnp.float32, jnp.bfloat16):
        # Constant data would run faster than any real one: fewer bits change.
        x = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(lambda x: x @ x)
        jax.block_until_ready(product(x))
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(product(x))
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


class Peak:
    """Peak of the devices of a mesh: the vendor's figure, or this machine's best matrix product."""

    def __init__(self) -> None:
        self._name = chip_of(jax.devices()[0].device_kind)
        self._measured = 0.0

    def of(self, devices: int) -> tuple[float, str]:
        """FLOP/s of that many devices together, and the source of the figure.

        Simulated devices share one processor, so its peak is that of all of them. It is measured
        again for every row, and the best measurement counts.
        """
        if self._name is not None:
            own = CHIPS[self._name]
            return own.peak * devices, f"{self._name}, bfloat16: {own.source}"
        self._measured = max(self._measured, product_peak())
        return self._measured, MEASURED


def measure(cell: Cell, catalogue: str, peak: Peak, *, columns: str | None = None) -> JsonObject:
    """Compile a cell, run it over fresh batches and report how fast it was.

    The loop waits for each step, so time spent waiting for a batch is lost time. Batches are read
    ahead as in training.
    """
    data, model = cell.request.axes
    mesh = make_mesh(data, model)
    load = os.getloadavg()[0]
    with jax.set_mesh(mesh):
        work = Work(cell, mesh, catalogue, columns)
        source: Source[Batch] = work.source
        batches = iterate(source, workers=cell.workers)
        first = work.placed(next(batches))
        compile_seconds, call = work.compile(first)
        seconds, waits, counts = _timed(cell, work, call, batches)
        sent = _sent(cell, work, dict(mesh.shape))
    whole, origin = peak.of(data * model)
    found = _rates(seconds, counts) | {
        "compile_seconds": round(compile_seconds, 3),
        "data_wait_share": round(sum(waits) / sum(seconds), 5),
        "text_padding": round(float(np.mean([x.padding for x in counts])), 4),
        **_utilised(seconds, counts, whole),
        "peak_tflops": round(whole / 1e12, 4),
        "peak_source": origin,
        "peak_bytes": max(map(_planned_bytes, work.programs)),
        "load_average_before": round(load, 2),
        **sent,
    }
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["process_peak_bytes"] = int(stats["peak_bytes_in_use"])
    return found


def _timed(
    cell: Cell, work: Work, call: Step, batches: Iterator[Batch]
) -> tuple[list[float], list[float], list[Counts]]:
    """Of each step: its seconds, those spent waiting for the batch, and its counts."""
    seconds, waits, counts = [], [], []
    key = jax.random.key(0)
    for number in range(WARM_UP + cell.steps):
        began = time.perf_counter()
        host = next(batches)
        batch = jax.block_until_ready(work.placed(host))
        ready = time.perf_counter()
        jax.block_until_ready(call(batch, jax.random.fold_in(key, number)))
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
            waits.append(ready - began)
            counts.append(count(cell, work.architecture.config, host))
    return seconds, waits, counts


def _rates(seconds: list[float], counts: list[Counts]) -> JsonObject:
    """Each step's counts divided by its seconds: median and extremes."""
    found: JsonObject = {"seconds_per_step": spread(seconds)}
    for name in ("samples", "tokens", "images", "rollouts"):
        values = [getattr(x, name) / s for x, s in zip(counts, seconds, strict=True)]
        if any(values):
            found[f"{name}_per_second"] = spread(values)
    return found


def _utilised(seconds: list[float], counts: list[Counts], peak: float) -> JsonObject:
    middle = float(np.median(seconds))
    useful, again = (
        float(np.mean([getattr(x, n) for x in counts])) for n in ("useful", "recomputed")
    )
    found: JsonObject = {
        "useful_tflop_per_step": round(useful / 1e12, 6),
        "recomputed_tflop_per_step": round(again / 1e12, 6),
    }
    for name, done in (("mfu", useful), ("hfu", useful + again)):
        try:
            found[name] = round(utilisation(done, middle, peak), 5)
        except RunError as error:
            # The other figures are valid; this one would mislead.
            found |= {name: None, f"{name}_problem": str(error)}
    return found


def _planned_bytes(program: jax.stages.Compiled) -> int:
    """Most that a compiled program holds on each device, bytes: inputs, outputs, temporaries."""
    memory = program.memory_analysis()
    if memory is None:
        return 0
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _sent(cell: Cell, work: Work, sizes: dict[str, int]) -> JsonObject:
    """Bytes that each device sends in a step, by axes and kind; empty on one device."""
    if max(sizes.values()) == 1:
        return {}
    found = [
        one
        for program in work.programs
        for one in collectives(program.as_text() or "", sizes, unknown_trips=cell.max_new_tokens)
    ]
    return {
        "collective_bytes": sum(x.total for x in found),
        "collective_bytes_by_axis": bytes_by_axis(found),
    }
