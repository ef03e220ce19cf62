"""Several sampled attribute lists of each training listing, for the embedder to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.row_packing import Prompts
from afmrl_jax.data.sources.prompts import PromptCollator
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params, identity
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.runtime.distributed import barrier
from afmrl_jax.training.annotate import as_read, completion_texts, read_partial, write_records
from afmrl_jax.types import JsonObject

CONTINUATIONS = 128
"""Lists that are written at once."""


@partial(jax.jit, static_argnames=("architecture", "lists", "max_new_tokens", "eos_id", "pad_id"))
def _sampled(
    architecture: Architecture,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    row_ids: jax.Array,
    lists: ListsConfig,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    grammar: Grammar | None,
) -> Generation:
    return generate(
        architecture.bind(params),
        prompts,
        group_size=lists.samples,
        max_new_tokens=max_new_tokens,
        temperature=lists.temperature,
        key=key,
        eos_id=eos_id,
        pad_id=pad_id,
        row_ids=row_ids,
        grammar=grammar,
    )


def sample_lists(
    architecture: Architecture,
    params: Params,
    builder: RowBuilder,
    indices: Sequence[int] | np.ndarray,
    out: Path,
    lists: ListsConfig,
    *,
    seed: int,
    mesh: Mesh,
    label: str,
    packed: bool = False,
    grammar: Grammar | None = None,
) -> None:
    """Write `lists.samples` lists of each listing to `out`, one JSON object a line.

    A killed run goes on after the last whole line, and ends with the same lists: each is drawn from
    a key of its own, by the listing's number. Of a malformed list the readable pairs are kept; one
    without any is left out.

    Args:
        architecture: of the generator.
        params: its weights.
        builder: rows of a list of listings.
        indices: which of them.
        out: the file.
        lists: how many, and how they are sampled.
        seed: of the samples.
        mesh: devices that share a batch.
        label: name of the progress bar.
        packed: whether prompts may share bins; see `RunConfig.packed`.
        grammar: of the lists; None for whatever the generator writes.
    """
    partial_path = out.with_name(f"{out.name}.{identity(architecture, params)}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = read_partial(partial_path).keys()
    # All have read what a killed run left before the first one goes on with it.
    barrier(f"{label} starts")
    rest = [int(n) for n in indices if builder.listings[int(n)].listing_id not in done]
    batches = _batches(architecture, params, builder, rest, lists, seed, mesh, packed, grammar)
    write_records(batches, out, partial_path, count=len(rest), label=label)


def _batches(
    architecture: Architecture,
    params: Params,
    builder: RowBuilder,
    indices: Sequence[int],
    lists: ListsConfig,
    seed: int,
    mesh: Mesh,
    packed: bool,
    grammar: Grammar | None,
) -> Iterator[list[JsonObject]]:
    """Records of the listings, in the order of `indices`."""
    if not indices:
        return
    tokenizer, shares = builder.tokenizer, mesh.shape[AXES[0]]
    size = math.ceil(max(1, CONTINUATIONS // lists.samples) / shares) * shares
    lengths = [len(builder.prompt(n).tokens) for n in indices]
    collate = PromptCollator.of(builder, lengths, size, packed=packed, shares=shares)
    params, key = place(params, mesh), jax.random.key(seed)
    for begin in range(0, len(indices), size):
        chosen = [*indices[begin : begin + size]]
        padded = chosen + [chosen[-1]] * (size - len(chosen))
        prompts = [builder.prompt(n) for n in padded]
        with jax.set_mesh(mesh):
            generation = _sampled(
                architecture,
                params,
                place_batch(collate(prompts), mesh),
                key,
                place_batch(np.array(padded, np.int32), mesh),
                lists,
                builder.text.max_attribute_tokens,
                tokenizer.eos_id,
                tokenizer.pad_id,
                grammar,
            )
        texts, malformed = completion_texts(generation, tokenizer)
        kept = [x.attributes for x in as_read(builder, padded, prompts, texts, malformed)]
        yield [
            {
                "listing_id": builder.listings[n].listing_id,
                "samples": [x for x in kept[place * lists.samples :][: lists.samples] if x],
            }
            for place, n in enumerate(chosen)
        ]
