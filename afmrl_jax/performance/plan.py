"""Will it fit: memory of a stage on each device of a mesh, before anything is allocated."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.config import QwenVLConfig, RunConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.images import Normalization
from afmrl_jax.data.sources.batches import Batch, ContrastiveBatch, DistillBatch, PromptBatch
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.parallel.layout import fit_spec
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import shardings
from afmrl_jax.performance import memory as counts
from afmrl_jax.performance.memory import GIB, Line, Plan
from afmrl_jax.performance.request import Request
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.distill import make_distill_step
from afmrl_jax.training.partition import learns, tower_trains
from afmrl_jax.training.state import initial_state, make_optimizer

if TYPE_CHECKING:
    from jaxtyping import PyTree

Struct = jax.ShapeDtypeStruct
Shapes = dict[str, Struct]
SETTINGS = RunConfig.pretrained()
"""Settings that steps are planned with."""
INSIDE = ("gradients", "keys and values")
"""Lines that a compiled step holds among its temporaries."""


def divide(request: Request, architecture: Architecture) -> tuple[Shapes, Shapes]:
    """Shapes of the trained parameters (float32) and of the frozen ones (bfloat16)."""
    learning: Shapes = {}
    frozen: Shapes = {}
    for name, struct in architecture.shapes.items():
        own = request.task != "generate" and learns(name, request.trained)
        dtype = jnp.float32 if own else jnp.bfloat16
        (learning if own else frozen)[name] = Struct(struct.shape, dtype)
    return learning, frozen


def batch_shapes(request: Request, config: QwenVLConfig) -> Batch:
    """Shapes of a batch in which every row has one picture of full size."""
    rows, tokens = request.rows, request.visual_tokens + request.text_tokens
    vision = config.vision
    patches = request.visual_tokens * vision.merge_size**2
    pixels = vision.in_channels * vision.patch_size**2
    colors = Struct((rows if patches else 0, vision.in_channels), jnp.float32)
    bins = rows if patches else 0
    # Shapes instead of the arrays of a batch.
    whole = partial(Struct, dtype=jnp.int32)
    read = VLBatch(
        whole((rows, tokens)),
        Struct((rows, tokens), jnp.bool_),
        whole((rows, 3, tokens)),
        Struct((bins, patches, pixels), jnp.uint8),
        whole((bins, patches)),
        whole((bins, patches, 2)),
        whole((rows,)),
        Normalization(colors, colors, Struct((bins, patches), jnp.bool_)),
    )
    if request.task == "agcl":
        return ContrastiveBatch(read, whole((request.batch_size,)), prompt_last=whole((rows,)))
    if request.task == "distill":
        return DistillBatch(
            read,
            targets=whole((rows, tokens)),
            weights=Struct((rows, tokens), jnp.float32),
            prompt_last=whole((rows,)),
            products=whole((max(1, rows // 2),)),
        )
    return PromptBatch(read, whole((rows,)))


def _rows_over_data(batch: Batch, mesh: Mesh | AbstractMesh) -> PyTree:
    sizes = dict(mesh.shape)
    return jax.tree.map(lambda x: NamedSharding(mesh, fit_spec(P("data"), x.shape, sizes)), batch)


def exact_lines(request: Request, architecture: Architecture) -> list[Line]:
    """The parts determined by shapes and the sharding table: weights, moments, gradients, batch."""
    mesh = counts.abstract_mesh(*request.axes)
    learning, frozen = divide(request, architecture)
    optimizer = make_optimizer(SETTINGS.agcl.optimizer, 1)
    state = jax.eval_shape(partial(initial_state, optimizer=optimizer), learning)
    batch = batch_shapes(request, architecture.config)
    pairs = zip(jax.tree.leaves(batch), jax.tree.leaves(_rows_over_data(batch, mesh)), strict=True)
    carried = sum(
        int(np.prod(s.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x, s in pairs
    )
    own = counts.shard_bytes(learning, mesh)
    moments = counts.shard_bytes(state.opt_state, mesh) if learning else 0
    lines = [
        Line("weights that learn (float32)", own, "exact"),
        Line("frozen weights (bfloat16)", counts.shard_bytes(frozen, mesh), "exact"),
        Line("optimizer moments", moments, "exact"),
        Line("gradients", own, "exact"),
        Line("batch", carried, "exact"),
    ]
    if request.task == "generate":
        cache = counts.cache_bytes(
            architecture.config,
            jnp.dtype(request.dtype).itemsize,
            counts.rows_per_device(request.rows, request.axes[0]),
            request.visual_tokens + request.text_tokens,
            request.group_size,
            request.max_new_tokens,
        )
        lines.append(Line("keys and values", cache, "exact"))
    return lines


def estimated(request: Request, config: QwenVLConfig) -> Line:
    """Activations and temporaries by `memory.activation_bytes`."""
    data, model = request.axes
    rows = counts.rows_per_device(request.rows, data)
    length = request.visual_tokens + request.text_tokens
    places = {
        "agcl": 0,
        "distill": rows * min(length, SETTINGS.distill.logits_at_once or length),
        "generate": rows * request.group_size,
    }
    load = counts.Load(
        rows=rows,
        text_tokens=request.text_tokens,
        visual_tokens=request.visual_tokens,
        model=model,
        backward=request.task != "generate",
        through_vision=tower_trains(request.trained, config.lora),
        logits=places[request.task],
    )
    amount = counts.activation_bytes(config, request.execution, load)
    return Line("activations, temporaries", amount, "estimate")


def lowered(
    request: Request, architecture: Architecture, mesh: Mesh, batch: Batch | None = None
) -> jax.stages.Lowered:
    """The real step of the task, lowered for `mesh` from shapes only.

    Args:
        request: task, sizes and what is trained.
        architecture: of the model.
        mesh: of real or simulated devices.
        batch: shapes with their shardings; None for `batch_shapes`.
    """
    learning, frozen = divide(request, architecture)

    def laid(tree: PyTree, places: PyTree) -> PyTree:
        return jax.tree.map(lambda x, s: Struct(x.shape, x.dtype, sharding=s), tree, places)

    if batch is None:
        batch = batch_shapes(request, architecture.config)
        batch = laid(batch, _rows_over_data(batch, mesh))
    frozen = laid(frozen, shardings(frozen, mesh))
    if request.task == "generate":
        return jax.jit(partial(_write, architecture, request)).lower(frozen, batch.rows)
    optimizer = make_optimizer(SETTINGS.agcl.optimizer, 1)
    state = jax.eval_shape(partial(initial_state, optimizer=optimizer), learning)
    state = laid(state, shardings(state, mesh))
    if request.task == "agcl":
        step = make_agcl_step(architecture, SETTINGS.agcl, None, optimizer)
    else:
        step = make_distill_step(architecture, SETTINGS.distill, optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return cast(jax.stages.Wrapped, step).lower(frozen, state, batch, key)


def _write(
    architecture: Architecture, request: Request, params: Params, prompts: VLBatch
) -> Generation:
    return generate(
        architecture.bind(params),
        prompts,
        group_size=request.group_size,
        max_new_tokens=request.max_new_tokens,
        temperature=0.0 if request.group_size == 1 else 1.0,
        key=jax.random.key(0),
        eos_id=0,
        pad_id=0,
    )


MOST_SIMULATED = 64
"""A plan is compiled up to this many devices; beyond, XLA's partitioner takes minutes."""


def compiled(request: Request, architecture: Architecture) -> int | None:
    """Bytes of temporaries on each device in XLA's plan for CPUs; None if there is no plan.

    They include gradients, keys and values, which the exact lines count separately.
    """
    data, model = request.axes
    if data * model > min(MOST_SIMULATED, len(jax.devices("cpu"))):
        return None
    mesh = make_mesh(data, model)
    with jax.set_mesh(mesh):
        try:
            memory = lowered(request, architecture, mesh).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            warnings.warn(f"XLA could not compile this step ({error})", stacklevel=2)
            return None
    return None if memory is None else int(memory.temp_size_in_bytes)


def make_plan(request: Request, *, compile_step: bool = True) -> Plan:
    """Memory of a task on each device.

    Args:
        request: model, task and mesh.
        compile_step: get the temporaries from XLA, half a minute for a published size. Needs as
            many CPU devices as the mesh has, see `parallel.mesh`; with fewer the formula is used.
    """
    architecture = request.architecture()
    lines = exact_lines(request, architecture)
    formula = estimated(request, architecture.config)
    activations = formula
    temporaries = compiled(request, architecture) if compile_step else None
    if temporaries is not None:
        apart = sum(x.bytes for x in lines if x.what in INSIDE)
        activations = Line(formula.what, max(0, temporaries - apart), "compiled")
    capacity, share = counts.jax_bytes(request.device), counts.share_of(request.device)
    shown = (*(x for x in lines if x.bytes), activations)
    plan = Plan(shown, formula, capacity, share=share)
    return plan if plan.verdict == "fits" else dataclasses.replace(plan, advice=advise(request))


def _alternatives(request: Request) -> dict[str, Request]:
    data, model = request.axes
    but = partial(dataclasses.replace, request)
    changed = {
        f"--mesh data={2 * data},model={model} (the same batch)": but(
            mesh=f"data={2 * data},model={model}"
        ),
        f"--mesh data={data},model={2 * model}": but(mesh=f"data={data},model={2 * model}"),
        "--dtype bfloat16": but(dtype="bfloat16"),
    }
    if request.batch_size // 2 >= max(2, data):
        half = request.batch_size // 2
        changed[f"--batch-size {half}"] = but(batch_size=half)
    if request.visual_tokens > 1:
        fewer = request.visual_tokens // 2
        changed[f"--visual-tokens {fewer} (smaller pictures)"] = but(visual_tokens=fewer)
    if request.task != "generate":
        changed["--remat full"] = but(remat="full")
        changed["--trained lora"] = but(trained="lora")
    return changed


def advise(request: Request) -> tuple[str, ...]:
    """What to change, largest effect first; each change by itself, by the formula."""

    def total(asked: Request) -> int:
        architecture = asked.architecture()
        parts = [*exact_lines(asked, architecture), estimated(asked, architecture.config)]
        return sum(x.bytes for x in parts)

    now = total(request)
    savings = {text: now - total(asked) for text, asked in _alternatives(request).items()}
    ordered = sorted(savings.items(), key=lambda item: -item[1])
    return tuple(
        f"{text}: {saved / GIB:.1f} GiB less on each device"
        for text, saved in ordered
        if saved > 0.01 * now
    )
