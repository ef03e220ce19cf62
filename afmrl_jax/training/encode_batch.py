"""Vectors of a batch's rows: at once, or chunk by chunk for batches beyond memory (GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from afmrl_jax.data.batching.chunk_arrays import Chunks, PatchChunks, TextChunks
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.batching.visual_features import VisualFeatures
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.embedder import ends, over_all, unit
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.parallel.param_paths import TOWER
from afmrl_jax.types import AnyArray, Array, Int, PyTree


def encode_batch(
    architecture: Architecture,
    frozen: Params,
    params: Params,
    batch: ContrastiveBatch,
    *,
    prefix: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Unit vectors of the rows of a batch, in the order of the batch.

    Chunks give the vectors, and by automatic differentiation the gradients, of the whole batch;
    what differs is the order of sums. Only the vectors of the batch, the activations of one chunk
    and the visual tokens are held at once:

    * rows go through the decoder in a loop over chunks that the backward pass computes again, as in
      GradCache (Gao et al., arXiv 2101.06983), here by one differentiable `jax.lax.scan`;
    * a frozen vision tower runs once for each picture, outside that loop;
    * a vision tower that learns has a rematerialised loop of its own over chunks of bins: it runs
      twice, and no more than its visual tokens are kept in between.

    Args:
        architecture: the embedder.
        frozen: parameters that take no gradient.
        params: the others.
        batch: its `rows` are read; where `prefix` is set and they are neither in chunks nor packed,
            also its `prompt_last`.
        prefix: whether to give the vectors of what stands before the attributes too.

    Returns:
        [b d] float32, and the same of the prefixes or None.
    """
    rows = batch.rows
    if isinstance(rows, Chunks):
        return _chunked(architecture, frozen, params, rows, prefix=prefix)
    model = architecture.bind({**frozen, **params})
    if isinstance(rows, PackedRows):
        places = _places(rows.last, rows.bare_last) if prefix else rows.last[:, None]
        vectors = unit(model.packed(rows, at=places))
    else:
        length, last = rows.tokens.shape[1], ends(rows.token_mask)
        places = last[:, None]
        if prefix:
            assert batch.prompt_last is not None
            places = _places(last, over_all(batch.prompt_last, length))
        vectors = unit(model(rows, at=places))
    return vectors[:, 0], vectors[:, 1] if prefix else None


def _places(last: Int[AnyArray, " b"], bare: Int[AnyArray, " b"]) -> Int[Array, "b 2"]:
    """Of the last tokens of rows and of those before the attributes, [b 2]."""
    return jnp.stack([last, bare], axis=1)


def _chunked(
    architecture: Architecture, frozen: Params, params: Params, rows: Chunks, *, prefix: bool
) -> tuple[jax.Array, jax.Array | None]:
    visual = rows.visual
    if visual is None and rows.pictures:
        visual = _visual_features(architecture, frozen, params, rows.pictures)

    def encode(
        learning: _Weights, fixed: _Weights, chunk: TextChunks
    ) -> tuple[jax.Array, jax.Array | None]:
        visual = fixed.visual if learning.visual is None else learning.visual
        flat = jax.tree.map(_joined, chunk)
        model = architecture.bind({**fixed.params, **learning.params})
        shares = chunk.tokens.shape[0]
        embedded = model.embed(flat.tokens, visual, flat.visual_start, shares=shares)
        last, length = ends(flat.token_mask), flat.tokens.shape[1]
        places = _places(last, over_all(flat.bare_last, length)) if prefix else last[:, None]
        vectors = unit(model.model(embedded, flat.positions, flat.token_mask, at=places))
        return vectors[:, 0], vectors[:, 1] if prefix else None

    own = tower_learns(params) and rows.visual is None
    learning = _Weights(params, visual if own else None)
    fixed = _Weights(frozen, None if own else visual)
    found = [_over_chunks(encode, learning, fixed, text) for text in rows.texts]
    last, bare = zip(*found, strict=True)
    return _ordered(last, rows.place), _ordered(bare, rows.place) if prefix else None


def tower_learns(params: Params) -> bool:
    """Whether the parameters that learn have any of the vision tower."""
    return any(name.startswith(TOWER) for name in params)


def _ordered(chunks: Sequence[jax.Array], place: jax.Array) -> jax.Array:
    """Vectors [n r d] of several shapes in the order of the batch, [b d]."""
    flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in chunks])
    return rows_over_data(jnp.take(flat, place, axis=0))


class _Weights(NamedTuple):
    """What a chunk is computed with, beside its own arrays."""

    params: Params
    visual: VisualFeatures | None = None


Encode = Callable[[_Weights, _Weights, PyTree], PyTree]
"""(what learns, what is fixed, a chunk) -> vectors or visual features."""


def _over_chunks(encode: Encode, learning: _Weights, fixed: _Weights, chunks: TextChunks) -> PyTree:
    """What `encode` makes of each chunk, zeros for empty ones, stacked."""
    again = _rematerialised(encode)

    def body(_: None, entry: tuple[jax.Array, TextChunks]) -> tuple[None, PyTree]:
        number, chunk = entry
        return None, again(number < chunks.used, learning, fixed, chunk)

    count = jax.tree.leaves(chunks)[0].shape[0]
    entries = (jnp.arange(count, dtype=jnp.int32), chunks._replace(used=None))
    return jax.lax.scan(body, None, entries)[1]


def _rematerialised(encode: Encode) -> Callable[[jax.Array, _Weights, _Weights, PyTree], PyTree]:
    """`encode` as by `jax.checkpoint`, and zeros, forward and backward, where a chunk is empty.

    A condition around `jax.checkpoint` would do the same in value, but what a condition's branches
    read becomes its residual: a copy of all weights for each chunk. So the rule is stated: keep
    the inputs, and differentiate again.
    """

    @jax.custom_vjp
    def call(filled: jax.Array, learning: _Weights, fixed: _Weights, chunk: PyTree) -> PyTree:
        shape = jax.eval_shape(encode, learning, fixed, chunk)

        def nothing(*_: PyTree) -> PyTree:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

        return jax.lax.cond(filled, encode, nothing, learning, fixed, chunk)

    def forward(*inputs: PyTree) -> tuple[PyTree, tuple[PyTree, ...]]:
        return call(*inputs), inputs

    def backward(inputs: tuple[PyTree, ...], cotangent: PyTree) -> tuple[None, PyTree, None, None]:
        filled, learning, fixed, chunk = inputs

        def pull(learning: _Weights, cotangent: PyTree) -> PyTree:
            pulled = jax.vjp(lambda x: encode(x, fixed, chunk), learning)[1]
            return pulled(cotangent)[0]

        def nothing(learning: _Weights, _: PyTree) -> PyTree:
            return jax.tree.map(jnp.zeros_like, learning)

        return None, jax.lax.cond(filled, pull, nothing, learning, cotangent), None, None

    call.defvjp(forward, backward)
    return call


def _joined(x: jax.Array) -> jax.Array:
    """[s r ...] to [s*r ...], rows over the devices."""
    return rows_over_data(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))


def _visual_features(
    architecture: Architecture, frozen: Params, params: Params, pictures: Sequence[PatchChunks]
) -> VisualFeatures:
    """Features [s v d] of all bins, chunk by chunk into one buffer."""
    merged = architecture.config.vision.merge_size**2
    shares = pictures[0].patches.shape[1]
    sizes = [x.patch_segment.shape for x in pictures]
    room = sum(n * m * p // merged for n, _, m, p in sizes)

    def tower(learning: _Weights, fixed: _Weights, chunk: PatchChunks) -> VisualFeatures:
        model = architecture.bind({**fixed.params, **learning.params})
        own = jax.tree.map(_joined, chunk)
        found = model.visual(own.patches, own.patch_segment, own.patch_position, own.normalization)
        return jax.tree.map(lambda x: x.reshape(shares, -1, x.shape[-1]), found)

    learns = tower_learns(params)
    run = _rematerialised(tower)
    learning = _Weights(params if learns else {})
    # A frozen tower is bound with the other weights, and takes no gradient to them.
    fixed = _Weights(frozen if learns else jax.lax.stop_gradient({**frozen, **params}))
    first = jax.tree.map(lambda x: x[0], pictures[0]._replace(used=None))
    buffer = jax.tree.map(
        lambda x: rows_over_data(jnp.zeros((shares, room, x.shape[-1]), x.dtype)),
        jax.eval_shape(tower, learning, fixed, first),
    )
    begin = 0
    for (count, _, bins, patches), chunks in zip(sizes, pictures, strict=True):

        def write(
            buffer: VisualFeatures,
            entry: tuple[jax.Array, jax.Array, PatchChunks],
            used: jax.Array = chunks.used,
        ) -> tuple[VisualFeatures, None]:
            number, offset, chunk = entry
            found = run(number < used, learning, fixed, chunk)
            zero = jnp.zeros_like(offset)
            place = (zero, offset, zero)
            return jax.tree.map(partial(_write, place=place), buffer, found), None

        numbers = jnp.arange(count, dtype=jnp.int32)
        own = bins * patches // merged
        entries = (numbers, begin + own * numbers, chunks._replace(used=None))
        buffer, _ = jax.lax.scan(write, buffer, entries)
        begin += own * count
    return buffer if learns else jax.lax.stop_gradient(buffer)


def _write(buffer: jax.Array, part: jax.Array, place: tuple[jax.Array, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(buffer, part, place)
