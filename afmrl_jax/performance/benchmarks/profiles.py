"""CPU time of a call on either side: products, copies, the rest."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

# The first match in the name of an XLA:CPU operation decides. A fusion is named after its last
# operation, and one computed by a matrix library after the library.
JAX_KINDS = {
    "products": ("ynn_fusion", "xnn_fusion", "onednn_fusion", "dot"),
    "copies": ("slice", "copy", "transpose", "concatenate", "broadcast", "gather", "bitcast"),
}
TORCH_KINDS = {
    "products": ("mm", "matmul", "linear", "bmm", "addmm", "attention", "conv"),
    "copies": ("copy", "cat", "contiguous", "clone", "index", "fill", "zero"),
}
# Spans that contain other spans, or wait.
HOLLOW = ("ThunkExecutor", "ThreadpoolListener", "Await", "end:", "while", "call")


def _grouped(times: Mapping[str, float], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    found: dict[str, float] = dict.fromkeys((*kinds, "rest"), 0.0)
    for name, value in times.items():
        kind = next((k for k, parts in kinds.items() if any(p in name for p in parts)), "rest")
        found[kind] += value
    total = sum(found.values())
    return {kind: round(value / total, 3) for kind, value in found.items()} if total else {}


def profile_jax(call: Callable[[], object]) -> dict[str, float]:
    """Shares of the thread time of one call, by kind of operation."""
    import jax

    times: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                if line.name.startswith("python"):
                    continue
                for event in line.events:
                    if not any(part in event.name for part in HOLLOW):
                        times[event.name] += event.duration_ns
    return _grouped(times, JAX_KINDS)


def profile_torch(call: Callable[[], object]) -> dict[str, float]:
    """Shares of the operators' own time of one call, by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    return _grouped({x.key: x.self_cpu_time_total for x in found.key_averages()}, TORCH_KINDS)
