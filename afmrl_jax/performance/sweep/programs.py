"""What the devices of a large mesh exchange in a step, from programs compiled for simulated ones.

Nothing is allocated: the real shapes are lowered abstractly. The exchanges are read from the text
after XLA's partitioner, which all backends share: XLA for CPUs later widens bfloat16 to float32,
accelerators do not. Those of the finished CPU program are counted as well.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.data.batching.chunk_arrays import Chunks, PatchChunks, TextChunks
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.parallel.layout import fit_spec
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.performance.collectives import Collective, bytes_by_axis, collectives
from afmrl_jax.performance.plan import batch_shapes, lowered
from afmrl_jax.performance.request import Request
from afmrl_jax.runtime.compilation import compiling_anew
from afmrl_jax.types import JsonObject

Struct = jax.ShapeDtypeStruct
QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""The program is never run, so its machine code may be poor."""
BIG = 1 << 20
"""Payload bytes from which an exchange counts as a separate one; the compilers combine smaller
ones."""


@dataclass(frozen=True)
class Case:
    """A training step with a fixed number of rows per chip."""

    name: str
    request: Request
    """With the mesh and batch size of one chip."""
    chunks: int = 0
    """Chunks in which each device encodes its rows (GradCache); 0: all at once."""

    def on(self, data: int, model: int) -> Request:
        """The step on a mesh."""
        size = self.request.batch_size * data * model
        return dataclasses.replace(self.request, mesh=f"data={data},model={model}", batch_size=size)


def chunked(
    request: Request, architecture: Architecture, mesh: Mesh, chunks: int
) -> jax.stages.Lowered:
    """`plan.lowered` of contrastive training, with the batch in chunks on every device.

    Raises:
        RunError: the rows of a device do not divide evenly into the chunks.
    """
    shares = request.axes[0]
    own, odd = divmod(request.rows, shares * chunks)
    if odd:
        raise RunError(f"{request.rows} rows do not make {chunks} equal chunks on {shares} devices")
    flat = batch_shapes(request, architecture.config)
    rows, sizes = flat.rows, dict(mesh.shape)
    assert isinstance(flat, ContrastiveBatch)
    assert isinstance(rows, VLBatch)
    assert rows.patches is not None
    assert rows.patch_segment is not None
    assert rows.patch_position is not None

    def cut(x: Struct) -> Struct:
        shape = (chunks, shares, own, *x.shape[1:])
        return _laid(Struct(shape, x.dtype), mesh, P(None, "data"), sizes)

    used = Struct((), jnp.int32)
    start = cut(rows.visual_start)
    texts = TextChunks(
        cut(rows.tokens), cut(rows.token_mask), cut(rows.positions), start, start, used
    )
    pictures = PatchChunks(
        cut(rows.patches),
        cut(rows.patch_segment),
        cut(rows.patch_position),
        used,
        jax.tree.map(cut, rows.normalization),
    )
    products = _laid(flat.products, mesh, P("data"), sizes)
    place = _laid(rows.visual_start, mesh, P("data"), sizes)
    batch = ContrastiveBatch(Chunks((texts,), (pictures,), None, place), products)
    return lowered(request, architecture, mesh, batch)


def _laid(x: Struct, mesh: Mesh, spec: P, sizes: dict[str, int]) -> Struct:
    return Struct(x.shape, x.dtype, sharding=NamedSharding(mesh, fit_spec(spec, x.shape, sizes)))


def exchanged(case: Case, data: int, model: int) -> JsonObject:
    """What one step of the case sends on a mesh of simulated devices; see `summary`."""
    request, mesh = case.on(data, model), make_mesh(data, model)
    architecture = request.architecture()
    began = time.perf_counter()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        if case.chunks:
            program = chunked(request, architecture, mesh, case.chunks)
        else:
            program = lowered(request, architecture, mesh)
        dumped: dict[str, Any] = {
            "xla_dump_to": folder,
            "xla_dump_hlo_pass_re": "spmd-partitioning",
        }
        with compiling_anew():
            finished = program.compile(compiler_options=dumped | QUICK)
        parted = [x for x in Path(folder).iterdir() if "after_spmd-partitioning" in x.name]
        if len(parted) != 1:
            raise RunError(f"XLA wrote {len(parted)} texts after its partitioner, not 1")
        found = collectives(parted[0].read_text(encoding="utf-8"), dict(mesh.shape))
    sizes = dict(mesh.shape)
    return {
        "case": case.name,
        "mesh": sizes,
        "rows": request.rows,
        **summary(found),
        "compiled_for_cpu": bytes_by_axis(collectives(finished.as_text() or "", sizes)),
        "seconds_to_compile": round(time.perf_counter() - began, 1),
    }


def summary(found: list[Collective]) -> JsonObject:
    """Bytes and number of exchanges by axes, and the largest exchanges."""
    axes: dict[str, dict[str, float]] = {}
    for one in found:
        own = axes.setdefault("+".join(one.axes), {"sent": 0, "sliced": 0, "big": 0, "group": 0})
        own["sent"] += one.total
        own["sliced"] += one.total if one.sliced else 0
        own["big"] += one.times if one.payload >= BIG else 0
        own["group"] = max(own["group"], one.group)
    largest = sorted(found, key=lambda x: -x.total)[:8]
    return {
        "axes": axes,
        "by_kind": bytes_by_axis(found),
        "largest": [
            {
                "kind": x.kind,
                "axes": list(x.axes),
                "payload": x.payload,
                "times": x.times,
                "sent": x.total,
                "source": x.source[-90:],
            }
            for x in largest
        ],
        "all_loops_known": all(x.known for x in found),
    }
