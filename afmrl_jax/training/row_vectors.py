"""Vectors of a batch's rows: at once, or chunk by chunk for batches beyond memory (GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from afmrl_jax.data.chunks import Chunks, PatchChunks, TextChunks
from afmrl_jax.layout import rows_over_data
from afmrl_jax.models.embedder import hidden_at, last_token, unit
from afmrl_jax.models.functional import Architecture, Params

TOWER = "visual_tower/"


def row_vectors(
    architecture: Architecture,
    frozen: Params,
    params: Params,
    batch: dict[str, Any],
    *,
    prefix: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Unit vectors of the rows of a batch, in the order of the batch.

    Chunks give the vectors, and by automatic differentiation the gradients, of the whole batch;
    what differs is the order of sums. Only the vectors of the batch, the activations of one chunk
    and the visual tokens are held at once:

    * rows go through the decoder in a loop over chunks that the backward pass computes anew, as in
      GradCache (Gao et al., arXiv 2101.06983), here by `jax.checkpoint` inside `jax.lax.scan`;
    * a frozen vision tower runs once for each picture, outside that loop;
    * a vision tower that learns has a rematerialised loop of its own over chunks of bins: it runs
      twice, and no more than its visual tokens are kept in between.

    Args:
        architecture: the embedder.
        frozen: parameters that take no gradient.
        params: the others.
        batch: a `VLBatch` or `Chunks` under `rows`; where `prefix` is set and rows are no chunks,
            also `prompt_last`, int32 [b].
        prefix: whether to give the vectors of what stands before the attributes too.

    Returns:
        [b d] float32, and the same of the prefixes or None.
    """
    rows = batch["rows"]
    if isinstance(rows, Chunks):
        return _chunked(architecture, frozen, params, rows, prefix=prefix)
    hidden = architecture.bind({**frozen, **params})(rows)
    vectors = unit(last_token(hidden, rows.token_mask))
    return vectors, unit(hidden_at(hidden, batch["prompt_last"])) if prefix else None


def _chunked(
    architecture: Architecture, frozen: Params, params: Params, rows: Chunks, *, prefix: bool
) -> tuple[jax.Array, jax.Array | None]:
    everything = {**frozen, **params}
    visual = rows.visual_tokens
    if visual is None and rows.pictures:
        learns = any(name.startswith(TOWER) for name in params)
        visual = _visual_tokens(architecture, everything, rows.pictures, learns=learns)

    def encode(chunk: TextChunks) -> tuple[jax.Array, jax.Array | None]:
        shares = chunk.tokens.shape[0]
        flat = jax.tree.map(_joined, chunk)
        model = architecture.bind(everything)
        embedded = model.embed(flat.tokens, visual, flat.visual_start, shares=shares)
        hidden = model.model(embedded, flat.positions, flat.token_mask)
        last = unit(last_token(hidden, flat.token_mask))
        return last, unit(hidden_at(hidden, flat.bare_last)) if prefix else None

    # The loop keeps the compiler from undoing the recomputation.
    again = jax.checkpoint(encode, prevent_cse=False)
    found = [_over_chunks(again, text) for text in rows.texts]
    last, bare = zip(*found, strict=True)
    return _ordered(last, rows.place), _ordered(bare, rows.place) if prefix else None


def _ordered(chunks: Sequence[jax.Array], place: jax.Array) -> jax.Array:
    """Vectors [n r d] of several shapes in the order of the batch, [b d]."""
    flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in chunks])
    return rows_over_data(jnp.take(flat, place, axis=0))


def _over_chunks(encode: Callable[[TextChunks], Any], text: TextChunks) -> Any:
    """What `encode` makes of each chunk, zeros of those that are empty, stacked."""
    count = text.tokens.shape[0]
    shape = jax.eval_shape(encode, _chunk(text, 0))

    def body(_: None, entry: tuple[jax.Array, TextChunks]) -> tuple[None, Any]:
        number, chunk = entry
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        filled = number < text.used
        return None, jax.lax.cond(filled, encode, lambda _: nothing, chunk)

    entries = (jnp.arange(count, dtype=jnp.int32), text._replace(used=None))
    return jax.lax.scan(body, None, entries)[1]


def _chunk(chunks: Any, number: int) -> Any:
    return jax.tree.map(lambda x: x[number], chunks._replace(used=None))


def _joined(x: jax.Array) -> jax.Array:
    """[s r ...] to [s*r ...], rows over the devices."""
    return rows_over_data(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))


def _visual_tokens(
    architecture: Architecture, params: Params, pictures: Sequence[PatchChunks], *, learns: bool
) -> jax.Array:
    """Visual tokens [s v d] of all bins, chunk by chunk into one buffer."""
    merged = architecture.config.vision.merge_size**2
    shares = pictures[0].patches.shape[1]
    sizes = [x.patch_segment.shape for x in pictures]
    room = sum(n * m * p // merged for n, _, m, p in sizes)

    def tower(chunk: PatchChunks) -> jax.Array:
        model = architecture.bind(params)
        patches, segment, position, _ = jax.tree.map(_joined, chunk)
        found = model.visual(patches, segment, position)
        return found.reshape(shares, -1, found.shape[-1])

    # Around the tower alone: the buffer must not become a residual of every chunk.
    tower = jax.checkpoint(tower, prevent_cse=False) if learns else tower

    def write(buffer: jax.Array, offset: jax.Array, chunk: PatchChunks) -> jax.Array:
        zero = jnp.zeros_like(offset)
        return jax.lax.dynamic_update_slice(buffer, tower(chunk), (zero, offset, zero))

    width = architecture.config.text.hidden_dim
    buffer = rows_over_data(jnp.zeros((shares, room, width), architecture.execution.dtype))
    begin = 0
    for (count, _, bins, patches), chunks in zip(sizes, pictures, strict=True):

        def body(buffer: jax.Array, entry: Any, used: jax.Array = chunks.used) -> Any:
            number, offset, chunk = entry
            skip = lambda buffer, offset, chunk: buffer  # noqa: E731
            return jax.lax.cond(number < used, write, skip, buffer, offset, chunk), None

        numbers = jnp.arange(count, dtype=jnp.int32)
        own = bins * patches // merged
        entries = (numbers, begin + own * numbers, chunks._replace(used=None))
        buffer, _ = jax.lax.scan(body, buffer, entries)
        begin += own * count
    return buffer if learns else jax.lax.stop_gradient(buffer)
