"""The programs that decide speed on an accelerator, at their real sizes, from shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from afmrl_jax.config import RarConfig
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.bm25 import Bm25Statistics, Bm25Terms, bm25_scores
from afmrl_jax.objectives.ranks import rank_positives
from afmrl_jax.parallel.layout import AXES, fit_spec
from afmrl_jax.parallel.sharding import shardings
from afmrl_jax.performance.flops import Passes
from afmrl_jax.performance.memory import cache_bytes, device_bytes, share_of
from afmrl_jax.performance.plan import batch_shapes, divide, lowered
from afmrl_jax.performance.remat import cheapest
from afmrl_jax.performance.request import Request
from afmrl_jax.retrieval.top_k import padded_rows, search_part
from afmrl_jax.training.rar.policy_gradient import Samples, update
from afmrl_jax.training.rar.rollout import encode_images
from afmrl_jax.training.state import initial_state, make_optimizer
from afmrl_jax.types import PyTree

Struct = jax.ShapeDtypeStruct
DIM, TERMS = 1536, 16
"""Length of a vector of Qwen2-VL-2B, and most terms of an attribute text."""


@dataclass(frozen=True)
class Sizes:
    """Models and counts; the defaults are the published sizes."""

    embedder: str = "qwen2vl_2b"
    generator: str = "qwen2_5vl_3b"
    further_embedders: tuple[str, ...] = ("qwen3vl_2b",)
    """Whose step is compiled too, as `embedder_step_NAME`."""
    further_generators: tuple[str, ...] = ("qwen3vl_2b", "qwen3vl_4b")
    """That decode too, as `decode_NAME`."""
    rows: int = 64
    """Prompts that are decoded, and rows of the embedder's step."""
    visual: int = 256
    """Tokens of a picture; each covers four patches."""
    text: int = 64
    """Tokens of a row beside its picture."""
    new_tokens: int = 80
    groups: int = 32
    """Prompts of a RAR update, with `group_size` continuations each."""
    group_size: int = 8
    vocab: int = 20_000
    """Terms that a batch of AGCL shares, so no multiple of a tile."""
    pairs: tuple[int, int] = (16_384, 65_536)
    """Of AGCL."""
    bm25: int = 1024
    shared: int = 1536
    """Terms that the batch of `bm25` texts shares."""
    reward: tuple[int, int] = (4096, 200_000)
    """Queries and gallery of the reward."""
    exact: tuple[int, int] = (1024, 1_000_000)
    """Queries and gallery of a search."""
    found: int = 50


@dataclass(frozen=True)
class Case:
    """A program and what it is held to."""

    name: str
    lower: Callable[[Mesh], jax.stages.Lowered]
    token_loop: bool = False
    """Whether it decodes: nothing the loop carries may be copied in it."""
    turns: int = 1
    """Of loops whose number of turns the program decides."""
    ideal_bytes: int = 0
    """What a turn of the token loop must read: weights and cache."""
    ideal_flops: float = 0.0
    """Operations that the table of `performance/flops.py` counts."""
    attends: bool = False
    """Whether it is a training step, whose attention must be given no mask over pairs."""
    vocab: int = 0
    """Terms over which there must be no product; 0 where that is not looked at."""
    meshes: bool = True
    """Whether it is also compiled for eight devices."""


def cases(sizes: Sizes, device: str = "h100") -> list[Case]:
    """All programs, the longest to compile first.

    Args:
        sizes: of models and batches.
        device: what they are for, see `performance/memory.py`; training steps recompute as little
            as fits there.
    """
    count, more = sizes.pairs
    return [
        _decode(sizes, sizes.generator, "decode"),
        *(_decode(sizes, x, f"decode_{x}", meshes=False) for x in sizes.further_generators),
        _embedder(sizes, device, sizes.embedder, "embedder_step"),
        *(
            _embedder(sizes, device, x, f"embedder_step_{x}", meshes=False)
            for x in sizes.further_embedders
        ),
        _rar(sizes, device),
        Case(_label("agcl", count), partial(_agcl, sizes, count), vocab=sizes.vocab),
        Case(_label("agcl", more), partial(_agcl, sizes, more), vocab=sizes.vocab, meshes=False),
        Case(f"bm25_{sizes.bm25}", partial(_bm25, sizes), meshes=False),
        Case("reward", partial(_reward, sizes)),
        Case("exact", partial(_exact, sizes)),
    ]


def _label(name: str, count: int) -> str:
    return f"{name}_{count // 1024}k" if count % 1024 == 0 else f"{name}_{count}"


def _spread(mesh: Mesh, tree: PyTree, *axes: str | tuple[str, ...]) -> PyTree:
    """Shapes laid over a mesh along their first axis; whole where no axis is given."""
    sizes = dict(mesh.shape)

    def laid(x: Any) -> Any:
        if not isinstance(x, Struct):
            return x
        spec = fit_spec(P(*axes), x.shape, sizes)
        return Struct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(laid, tree)


def _placed(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes of parameters or of a state, laid out by the sharding table."""
    return jax.tree.map(
        lambda x, s: Struct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh)
    )


def _grown(request: Request, mesh: Mesh) -> Request:
    """The same rows on each device."""
    data, model = mesh.shape.values()
    size = request.batch_size * data
    return dataclasses.replace(request, mesh=f"data={data},model={model}", batch_size=size)


def _planned(request: Request, mesh: Mesh) -> jax.stages.Lowered:
    request = _grown(request, mesh)
    return lowered(request, request.architecture(), mesh)


def _decode(sizes: Sizes, model: str, name: str, *, meshes: bool = True) -> Case:
    request = Request(
        model,
        "generate",
        batch_size=sizes.rows,
        visual_tokens=sizes.visual,
        text_tokens=sizes.text,
        max_new_tokens=sizes.new_tokens,
    )
    architecture = request.architecture()
    config, weights = architecture.config, 0
    for path, shape in architecture.shapes.items():
        # The tower is not read while decoding; a table that is no head gives a row a token.
        table = path.endswith("embed_tokens") and not config.text.tie_embeddings
        if not path.startswith("visual_tower") and not table:
            weights += 2 * shape.size
    cache = cache_bytes(config, 2, sizes.rows, sizes.visual + sizes.text, 1, sizes.new_tokens)
    return Case(
        name,
        partial(_planned, request),
        token_loop=True,
        turns=sizes.new_tokens,
        ideal_bytes=weights + cache,
        meshes=meshes,
    )


def _thrifty(request: Request) -> Request:
    """With the `remat` that a run would choose for its device."""
    capacity = int(device_bytes(request.device) * share_of(request.device))
    remat = cheapest(request.architecture(), [request], capacity)
    return dataclasses.replace(request, remat=remat)


def _embedder(sizes: Sizes, device: str, model: str, name: str, *, meshes: bool = True) -> Case:
    request = Request(
        model,
        "agcl",
        batch_size=sizes.rows // 2,
        visual_tokens=sizes.visual,
        text_tokens=sizes.text,
        trained="lora",
        device=device,
    )
    request = _thrifty(request)
    config = request.architecture().config
    patches, tokens = sizes.visual * config.vision.merge_size**2, sizes.visual + sizes.text
    passes = Passes.over(config, [patches] * sizes.rows, [tokens] * sizes.rows)
    return Case(
        name,
        partial(_planned, request),
        ideal_flops=passes.step("lora"),
        attends=True,
        meshes=meshes,
    )


def _rar(sizes: Sizes, device: str) -> Case:
    """Adapters learn; the tower is frozen, so its features are known.

    Of what a row holds while the gradient is computed, a prompt with its group counts as one row.
    """
    request = Request(
        sizes.generator,
        "distill",
        batch_size=sizes.groups,
        visual_tokens=sizes.visual,
        text_tokens=sizes.text + sizes.group_size * sizes.new_tokens,
        trained="lora",
        device=device,
    )
    request = dataclasses.replace(_thrifty(request), text_tokens=sizes.text)
    return Case(
        "rar_update",
        partial(_update, sizes, request),
        attends=True,
        meshes=False,
    )


def _update(sizes: Sizes, request: Request, mesh: Mesh) -> jax.stages.Lowered:
    request = _grown(request, mesh)
    architecture = request.architecture()
    learning, frozen = divide(request, architecture)
    optimizer = make_optimizer(RarConfig().optimizer, 1)
    state = jax.eval_shape(partial(initial_state, optimizer=optimizer), learning)
    samples = _samples(sizes, request, architecture, {**frozen, **learning})
    step = jax.jit(
        partial(update, architecture, RarConfig(), optimizer),
        static_argnames="parts",
        donate_argnames="state",
    )
    laid = (_placed(mesh, frozen), _placed(mesh, state), _spread(mesh, samples, AXES[0]))
    return step.lower(*laid, parts=1)


def _samples(
    sizes: Sizes, request: Request, architecture: Architecture, params: dict[str, Struct]
) -> Samples:
    rows = batch_shapes(request, architecture.config).rows
    assert isinstance(rows, VLBatch)
    visual = jax.eval_shape(partial(encode_images, architecture), params, rows)
    prompts = rows._replace(visual=visual, patches=None, patch_segment=None, patch_position=None)
    group = (request.rows, sizes.group_size)
    tokens = (*group, sizes.new_tokens)
    number, yes = partial(Struct, tokens, jnp.float32), partial(Struct, dtype=jnp.bool_)
    return Samples(
        prompts,
        Struct(tokens, jnp.int32),
        yes(tokens),
        number(),
        number(),
        Struct(group, jnp.float32),
        yes(group),
    )


def _agcl(sizes: Sizes, count: int, mesh: Mesh) -> jax.stages.Lowered:
    """Value and gradient by both sides' vectors."""

    def loss(
        queries: jax.Array, candidates: jax.Array, terms: Bm25Terms, ids: jax.Array
    ) -> jax.Array:
        return agcl_loss(queries, candidates, terms, ids, temperature=0.02, gamma=1.0, delta=0.1)[0]

    vectors, texts = Struct((count, DIM), jnp.float32), Struct((count, TERMS), jnp.int32)
    statistics = _statistics(sizes.vocab)
    ids = Struct((count,), jnp.int32)
    rows = _spread(mesh, (vectors, vectors), AXES[0])
    terms = Bm25Terms(_spread(mesh, statistics), *_spread(mesh, (texts, texts), AXES[0]))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return step.lower(*rows, terms, _spread(mesh, ids, AXES[0]))


def _statistics(terms: int) -> Bm25Statistics:
    shapes: Any = (Struct((terms,), jnp.float32), Struct((), jnp.float32))
    return Bm25Statistics(*shapes)


def _bm25(sizes: Sizes, mesh: Mesh) -> jax.stages.Lowered:
    texts = Struct((sizes.bm25, TERMS), jnp.int32)
    statistics = _statistics(sizes.shared)
    return jax.jit(bm25_scores).lower(*_spread(mesh, (statistics, texts, texts)))


def _reward(sizes: Sizes, mesh: Mesh) -> jax.stages.Lowered:
    count, gallery = sizes.reward
    vectors = Struct((-(-gallery // mesh.size) * mesh.size, DIM), jnp.bfloat16)
    asked = _spread(
        mesh,
        (
            Struct((count, DIM), jnp.float32),
            Struct((count, 4), jnp.int32),
            Struct((count,), jnp.int32),
        ),
    )

    def ranks(
        queries: jax.Array, vectors: jax.Array, positives: jax.Array, own: jax.Array
    ) -> jax.Array:
        return rank_positives(queries, vectors, positives, own, size=gallery).rank

    queries, positives, own = asked
    return jax.jit(ranks).lower(queries, _spread(mesh, vectors, AXES), positives, own)


def _exact(sizes: Sizes, mesh: Mesh) -> jax.stages.Lowered:
    count, gallery = sizes.exact
    rows = padded_rows(gallery, mesh.size)
    queries, offset = _spread(mesh, (Struct((count, DIM), jnp.float32), Struct((), jnp.int32)))
    vectors, alive = _spread(
        mesh, (Struct((rows, DIM), jnp.bfloat16), Struct((rows,), jnp.bool_)), AXES
    )
    where = mesh if mesh.size > 1 else None
    return search_part.lower(queries, vectors, alive, None, sizes.found, where, offset)
