"""Vectors of a batch's rows: at once, or chunk by chunk for batches beyond memory (GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from afmrl_jax.data.batching.chunk_arrays import Chunks, PatchChunks, TextChunks
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.embedder import hidden_at, last_token, unit
from afmrl_jax.parallel.layout import rows_over_data
from afmrl_jax.parallel.param_paths import TOWER


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

    * rows go through the decoder in a loop over chunks that the backward pass computes anew, as in
      GradCache (Gao et al., arXiv 2101.06983), here by one differentiable `jax.lax.scan`;
    * a frozen vision tower runs once for each picture, outside that loop;
    * a vision tower that learns has a rematerialised loop of its own over chunks of bins: it runs
      twice, and no more than its visual tokens are kept in between.

    Args:
        architecture: the embedder.
        frozen: parameters that take no gradient.
        params: the others.
        batch: its `rows` are read; where `prefix` is set and they are no chunks, also its
            `prompt_last`.
        prefix: whether to give the vectors of what stands before the attributes too.

    Returns:
        [b d] float32, and the same of the prefixes or None.
    """
    rows = batch.rows
    if isinstance(rows, Chunks):
        return _chunked(architecture, frozen, params, rows, prefix=prefix)
    hidden = architecture.bind({**frozen, **params})(rows)
    vectors = unit(last_token(hidden, rows.token_mask))
    if not prefix:
        return vectors, None
    assert batch.prompt_last is not None
    return vectors, unit(hidden_at(hidden, batch.prompt_last))


def _chunked(
    architecture: Architecture, frozen: Params, params: Params, rows: Chunks, *, prefix: bool
) -> tuple[jax.Array, jax.Array | None]:
    visual = rows.visual_tokens
    if visual is None and rows.pictures:
        visual = _visual_tokens(architecture, frozen, params, rows.pictures)

    def encode(learning: Any, fixed: Any, chunk: TextChunks) -> tuple[jax.Array, jax.Array | None]:
        (params, learned), (frozen, known) = learning, fixed
        visual = known if learned is None else learned
        flat = jax.tree.map(_joined, chunk)
        model = architecture.bind({**frozen, **params})
        shares = chunk.tokens.shape[0]
        embedded = model.embed(flat.tokens, visual, flat.visual_start, shares=shares)
        hidden = model.model(embedded, flat.positions, flat.token_mask)
        last = unit(last_token(hidden, flat.token_mask))
        return last, unit(hidden_at(hidden, flat.bare_last)) if prefix else None

    own = tower_learns(params) and rows.visual_tokens is None
    learning, fixed = (params, visual if own else None), (frozen, None if own else visual)
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


Encode = Callable[[Any, Any, Any], Any]
"""(what learns, what is fixed, a chunk) -> vectors or tokens."""


def _over_chunks(encode: Encode, learning: Any, fixed: Any, chunks: Any) -> Any:
    """What `encode` makes of each chunk, zeros of those that are empty, stacked."""
    again = _rematerialised(encode)

    def body(_: None, entry: tuple[jax.Array, Any]) -> tuple[None, Any]:
        number, chunk = entry
        return None, again(number < chunks.used, learning, fixed, chunk)

    count = jax.tree.leaves(chunks)[0].shape[0]
    entries = (jnp.arange(count, dtype=jnp.int32), chunks._replace(used=None))
    return jax.lax.scan(body, None, entries)[1]


def _rematerialised(encode: Encode) -> Callable[[jax.Array, Any, Any, Any], Any]:
    """`encode` as by `jax.checkpoint`, and zeros, forward and backward, where a chunk is empty.

    A condition around `jax.checkpoint` would do the same in value, but what a condition's branches
    read becomes its residual: a copy of all weights for each chunk. So the rule is stated: keep
    the inputs, and differentiate anew.
    """

    @jax.custom_vjp
    def call(filled: jax.Array, learning: Any, fixed: Any, chunk: Any) -> Any:
        shape = jax.eval_shape(encode, learning, fixed, chunk)

        def nothing(*_: Any) -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)

        return jax.lax.cond(filled, encode, nothing, learning, fixed, chunk)

    def forward(*inputs: Any) -> tuple[Any, Any]:
        return call(*inputs), inputs

    def backward(inputs: Any, cotangent: Any) -> tuple[None, Any, None, None]:
        filled, learning, fixed, chunk = inputs

        def pull(learning: Any, cotangent: Any) -> Any:
            pulled = jax.vjp(lambda x: encode(x, fixed, chunk), learning)[1]
            return pulled(cotangent)[0]

        def nothing(learning: Any, _: Any) -> Any:
            return jax.tree.map(jnp.zeros_like, learning)

        return None, jax.lax.cond(filled, pull, nothing, learning, cotangent), None, None

    call.defvjp(forward, backward)
    return call


def _joined(x: jax.Array) -> jax.Array:
    """[s r ...] to [s*r ...], rows over the devices."""
    return rows_over_data(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))


def _visual_tokens(
    architecture: Architecture, frozen: Params, params: Params, pictures: Sequence[PatchChunks]
) -> jax.Array:
    """Visual tokens [s v d] of all bins, chunk by chunk into one buffer."""
    merged = architecture.config.vision.merge_size**2
    shares = pictures[0].patches.shape[1]
    sizes = [x.patch_segment.shape for x in pictures]
    room = sum(n * m * p // merged for n, _, m, p in sizes)

    def tower(learning: Params, fixed: Params, chunk: PatchChunks) -> jax.Array:
        model = architecture.bind({**fixed, **learning})
        patches, segment, position, _ = jax.tree.map(_joined, chunk)
        found = model.visual(patches, segment, position)
        return found.reshape(shares, -1, found.shape[-1])

    learns = tower_learns(params)
    run = _rematerialised(tower)
    # A frozen tower is bound with the other weights, and takes no gradient to them.
    fixed = frozen if learns else jax.lax.stop_gradient({**frozen, **params})
    width = architecture.config.text.hidden_dim
    buffer = rows_over_data(jnp.zeros((shares, room, width), architecture.execution.dtype))
    begin = 0
    for (count, _, bins, patches), chunks in zip(sizes, pictures, strict=True):

        def write(buffer: jax.Array, entry: Any, used: jax.Array = chunks.used) -> Any:
            number, offset, chunk = entry
            tokens = run(number < used, params if learns else {}, fixed, chunk)
            zero = jnp.zeros_like(offset)
            return jax.lax.dynamic_update_slice(buffer, tokens, (zero, offset, zero)), None

        numbers = jnp.arange(count, dtype=jnp.int32)
        own = bins * patches // merged
        entries = (numbers, begin + own * numbers, chunks._replace(used=None))
        buffer, _ = jax.lax.scan(write, buffer, entries)
        begin += own * count
    return buffer if learns else jax.lax.stop_gradient(buffer)
