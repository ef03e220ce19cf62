"""Which form of the loss a batch takes, and how large its tiles are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import jax
from jax.sharding import Mesh

from afmrl_jax.objectives.agcl_kernels.collective import DATA, Placement
from afmrl_jax.objectives.agcl_kernels.products import accumulator
from afmrl_jax.objectives.agcl_kernels.sides import Stream, padding, tile_length
from afmrl_jax.objectives.agcl_kernels.tile import Plan
from afmrl_jax.objectives.bm25 import Bm25Terms
from afmrl_jax.runtime.hardware import built_for

Form = Literal["auto", "dense", "kept", "tiled", "ring", "gathered"]
CPU_TILE, CPU_KEPT_TILE, DEVICE_TILE = (512, 512), (4096, 512), (4096, 4096)
"""Rows and columns of a tile: what fits a CPU's caches, and enough work for one launch elsewhere.
Where logits are kept, tall tiles cost no memory and add up the candidates' gradient once. The last
is an estimate; no accelerator was at hand to measure."""
KEEP_BYTES = 2**27
"""Largest size of the logits of all pairs that `auto` keeps between the passes on one device: 4096
pairs in float32 and both directions. Up to there memory is no concern, and a product of four and
the second making of weights and masks are spared."""
GATHER_BYTES = 2**28
"""Largest size of all candidates and their gradient that `auto` brings to every device. Up to there
one collective and fewer, longer loops are worth more than memory that any device has."""


def choose(
    form: Form,
    bm25: Bm25Terms | jax.Array | None,
    queries: jax.Array,
    candidates: jax.Array,
    mesh: Mesh | None,
    symmetric: bool,
) -> Literal["dense", "kept"] | Placement:
    """The form that was asked for, or what `auto` stands for; see `agcl_loss`.

    Raises:
        ValueError: the form is unknown, or cannot be had with this BM25 or without a mesh.
    """
    given = isinstance(bm25, jax.Array)
    if form not in get_args(Form):
        raise ValueError(f"AGCL has the forms {', '.join(get_args(Form))}, not {form!r}")
    if given and form not in ("auto", "dense"):
        raise ValueError(
            f"form {form!r} makes its own tiles of BM25: pass `Bm25Terms` instead of scores, or "
            "take the form 'dense'"
        )
    shards = _shards(mesh)
    if form in ("ring", "gathered") and not shards:
        raise ValueError(
            f"form {form!r} needs a mesh with the axis {DATA!r}: pass `mesh`, or call within "
            "`jax.set_mesh`"
        )
    if form != "auto":
        return form
    if given:
        return "dense"
    itemsize = accumulator(queries).itemsize
    if shards < 2:
        logits = queries.shape[0] * candidates.shape[0] * itemsize * (2 if symmetric else 1)
        return "kept" if logits <= KEEP_BYTES else "tiled"
    gradient = candidates.size * itemsize
    return "gathered" if candidates.nbytes + gradient <= GATHER_BYTES else "ring"


def stream_of(
    queries: jax.Array,
    candidates: jax.Array,
    placement: Placement,
    mesh: Mesh | None,
    tile: tuple[int, int] | None,
    plan: Plan,
) -> Stream:
    """Equal tiles of at most the wished size, and whether any has padding."""
    on_cpu = CPU_KEPT_TILE if plan.keep else CPU_TILE
    wanted = tile or (on_cpu if built_for() == "cpu" else DEVICE_TILE)
    shards = 1 if placement == "tiled" else _shards(mesh)
    counts = queries.shape[0], candidates.shape[0]
    rows, cols = (tile_length(n, shards, most) for n, most in zip(counts, wanted, strict=True))
    padded = bool(padding(counts[0], shards, rows) or padding(counts[1], shards, cols))
    return Stream(replace(plan, padded=padded), placement, mesh, shards, (rows, cols))


def _shards(mesh: Mesh | None) -> int:
    """Size of the mesh's data axis; 0 where there is none."""
    found = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 0 if found.empty else int(dict(found.shape).get(DATA, 0))
