"""How long a training step takes to compile: looped or unrolled, with XLA's flags for CPUs as they
are by default, and with a warm cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from afmrl_jax.performance.record import ratios, spread
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.types import JsonObject

if TYPE_CHECKING:
    import jax

PROGRAM = """
import json, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from afmrl_jax.runtime.compilation import compile_quickly
if sys.argv[2] != "default flags":
    compile_quickly()
jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(1)))
from afmrl_jax.performance.benchmarks.compile_time import lowered_step
# Imports take as long as the work of a small step, and are the same for all.
import afmrl_jax.performance.benchmarks.jax_side
began = time.perf_counter()
program = lowered_step(int(sys.argv[1]), sys.argv[2] in ("loop", "warm"))
middle = time.perf_counter()
program.compile()
done = time.perf_counter()
print(json.dumps({"trace": middle - began, "compile": done - middle, "both": done - began}))
"""
KINDS = ("unrolled", "loop", "warm")
FLAGS = ("default flags", "flags")
"""Of XLA: as they are, and with those of `compile_quickly`."""
FEW = 3
"""Layers of the demo's models, unrolled, for which the flags are compared."""


def lowered_step(layers: int, scan: bool) -> jax.stages.Lowered:
    """The embedder's training step on adapters, traced and lowered from shapes only."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from afmrl_jax.config import Execution
    from afmrl_jax.data.sources.batches import ContrastiveBatch
    from afmrl_jax.models.architecture import Architecture
    from afmrl_jax.parallel.param_paths import is_adapter
    from afmrl_jax.performance.benchmarks.jax_side import settings
    from afmrl_jax.performance.benchmarks.workload import Size, make_rows
    from afmrl_jax.training.agcl import make_agcl_step
    from afmrl_jax.training.state import initial_state, make_optimizer

    # Compile time does not depend on the width of the layers.
    size = dataclasses.replace(Size.tiny(), layers=layers, vision_depth=layers)
    config = dataclasses.replace(size.config, lora=size.lora)
    architecture = Architecture.of(config, Execution(scan=scan))
    own = {n: x for n, x in architecture.shapes.items() if is_adapter(n)}
    frozen = {n: x for n, x in architecture.shapes.items() if n not in own}
    configured = settings(1000)
    optimizer = make_optimizer(configured.optimizer, configured.steps)
    state = jax.eval_shape(lambda p: initial_state(p, optimizer), own)
    rows = make_rows(size, 2 * size.pairs)
    batch = ContrastiveBatch(rows, jnp.arange(size.pairs, dtype=jnp.int32))
    step = make_agcl_step(architecture, configured, None, optimizer)
    return cast(jax.stages.Wrapped, step).lower(frozen, state, batch, jax.random.key(0))


def _compile(layers: int, kind: str, cache: Path | None) -> dict[str, float]:
    """Seconds of each phase in a fresh process."""
    here = str(Path(__file__).parents[3])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if kind == "default flags":
        environment.pop("XLA_FLAGS", None)  # This process has set ours.
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(layers), kind],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"a compile process failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_compile(layers: int, repeats: int) -> tuple[dict[str, float], list[JsonObject]]:
    """Figures and details: seconds to trace and compile one step, interleaved by kind.

    Cold and warm start are of the looped step: the same process with an empty cache folder, and
    with the cache that the previous one left. Few layers are compiled with and without the flags
    of `compile_quickly`; all else has them.
    """
    sizes = dict.fromkeys(KINDS, layers) | dict.fromkeys(FLAGS, FEW)
    samples: dict[str, list[dict[str, float]]] = {kind: [] for kind in sizes}
    with Progress("compile", len(sizes) * repeats) as progress:
        for number in range(repeats):
            with tempfile.TemporaryDirectory() as name:
                for part, (kind, size) in enumerate(sizes.items(), 1):
                    cache = Path(name) if kind in ("loop", "warm") else None
                    samples[kind].append(_compile(size, kind, cache))
                    progress.update(len(sizes) * number + part)

    def both(kind: str) -> list[float]:
        return [x["both"] for x in samples[kind]]

    scanned, warm = ratios(both("unrolled"), both("loop")), ratios(both("loop"), both("warm"))
    quick = ratios(*([x["compile"] for x in samples[kind]] for kind in FLAGS))
    details = [
        {
            "part": f"compile_{kind}",
            "layers": sizes[kind],
            **{f"{what}_seconds": spread([x[what] for x in found]) for what in found[0]},
        }
        for kind, found in samples.items()
    ]
    speedups = {
        "part": "compile",
        "loop_speedup": scanned,
        "warm_speedup": warm,
        "flags_speedup": quick,
    }
    figures = {
        "compile_scan_speedup": scanned["median"],
        "warm_start_speedup": warm["median"],
        "compile_flags_speedup": quick["median"],
    }
    return figures, [*details, speedups]
