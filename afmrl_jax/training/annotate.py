"""Attributes written by the generator; resumable, because a large catalogue takes hours."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.data.attributes.text_format import (
    is_malformed,
    salvage_attributes,
    stated_attributes,
)
from afmrl_jax.data.attributes.token_grammar import Grammar
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.row_packing import Prompts
from afmrl_jax.data.sources.prompts import PromptCollator
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params, identity
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.parallel.layout import AXES
from afmrl_jax.parallel.sharding import place, place_batch
from afmrl_jax.runtime.distributed import barrier, to_host
from afmrl_jax.runtime.files import disk_full, is_disk_full, is_writer
from afmrl_jax.runtime.json_files import read_records
from afmrl_jax.runtime.object_store import keep
from afmrl_jax.runtime.outputs import first_record, require_own_output
from afmrl_jax.runtime.preemption import heed
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import JsonObject

BATCH = 128
"""Listings at a time."""
KEEP_EVERY = 600.0
"""Seconds after which what was written goes home, where the run has one elsewhere."""


class Written(NamedTuple):
    """What the generator wrote for a listing."""

    listing: int
    text: str
    malformed: bool
    attributes: str
    """What can be read of it; may be empty."""


def as_read(
    builder: RowBuilder,
    listings: Sequence[int],
    prompts: Sequence[Row],
    texts: Sequence[str],
    malformed: np.ndarray,
) -> list[Written]:
    """Texts with what can be read of them, in their order.

    Of a title alone nothing can be known that it does not say. A generator writes whole lists
    nevertheless, and an embedder that reads well is misled by what was guessed.

    Args:
        builder: has the titles.
        listings: numbers of the listings.
        prompts: what the generator was shown of each.
        texts: as many of each listing, one listing after the other.
        malformed: whether each breaks the grammar, bool.
    """
    each = len(texts) // len(listings)
    found: list[Written] = []
    for n, (text, bad) in enumerate(zip(texts, malformed.tolist(), strict=True)):
        listing, prompt = listings[n // each], prompts[n // each]
        read = salvage_attributes(text) if bad else text
        if not prompt.pictures:
            read = stated_attributes(read, builder.listings[listing].title)
        found.append(Written(listing, text, bad, read))
    return found


@partial(jax.jit, static_argnames=("architecture", "max_new_tokens", "eos_id", "pad_id"))
def greedy(
    architecture: Architecture,
    params: Params,
    prompts: Prompts,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    grammar: Grammar | None = None,
) -> Generation:
    """The most likely completion of each prompt; of those in the grammar, if there is one."""
    return generate(
        architecture.bind(params),
        prompts,
        group_size=1,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        key=jax.random.key(0),
        eos_id=eos_id,
        pad_id=pad_id,
        grammar=grammar,
    )


def completion_texts(generation: Generation, tokenizer: Any) -> tuple[list[str], np.ndarray]:
    """Texts of all samples in row order, [b * g], and whether each is malformed, bool [b * g].

    A list that did not end within the budget is malformed whatever it says.
    """
    generation = to_host(generation)
    tokens = generation.tokens.reshape(-1, generation.tokens.shape[-1])
    lengths = generation.mask.sum(-1).reshape(-1)
    finished = generation.finished.reshape(-1)
    texts = [
        tokenizer.decode(row[: n - 1 if done else n].tolist()).strip()
        for row, n, done in zip(tokens, lengths, finished, strict=True)
    ]
    malformed = np.array(
        [not done or is_malformed(t) for t, done in zip(texts, finished, strict=True)]
    )
    return texts, malformed


def write_attributes(
    architecture: Architecture,
    params: Params,
    builder: RowBuilder,
    indices: Sequence[int],
    *,
    mesh: Mesh,
    batch_size: int = BATCH,
    packed: bool = False,
    grammar: Grammar | None = None,
) -> Iterator[list[Written]]:
    """Batches of lists, in the order of `indices`.

    With `packed` prompts share bins, where no mesh divides a batch. With `grammar` every text is in
    it.
    """
    if not indices:
        return
    lengths = [len(builder.prompt(i).tokens) for i in indices]
    collate = PromptCollator.of(
        builder, lengths, batch_size, packed=packed, shares=mesh.shape[AXES[0]]
    )
    tokenizer = builder.tokenizer
    params = place(params, mesh)
    for begin in range(0, len(indices), batch_size):
        chosen = indices[begin : begin + batch_size]
        rows = [builder.prompt(i) for i in chosen]
        short = min(rows, key=lambda row: len(row.tokens))
        rows += [short] * (batch_size - len(rows))
        with jax.set_mesh(mesh):
            generation = greedy(
                architecture,
                params,
                place_batch(collate(rows), mesh),
                builder.text.max_attribute_tokens,
                tokenizer.eos_id,
                tokenizer.pad_id,
                grammar,
            )
        texts, malformed = completion_texts(generation, tokenizer)
        count = len(chosen)
        yield as_read(builder, chosen, rows[:count], texts[:count], malformed[:count])


def annotate(
    architecture: Architecture,
    params: Params,
    builder: RowBuilder,
    indices: Sequence[int] | np.ndarray,
    out: Path,
    *,
    mesh: Mesh,
    batch_size: int = BATCH,
    packed: bool = False,
    grammar: Grammar | None = None,
    label: str = "annotate",
    known: Mapping[str, str] | None = None,
    key: str = "",
) -> dict[str, str]:
    """Write the attributes of some listings to `out`, one JSON object a line.

    A killed run goes on after the last whole line. A malformed list is kept as written under
    `raw`; `attributes` then holds what can be read of it. How many there were is said at the end.
    Of a list that was written from a title alone, only what the title says is kept.

    Args:
        architecture: of the generator.
        params: its weights.
        builder: rows of a list of listings.
        indices: which of them.
        out: the file.
        mesh: devices that share a batch.
        batch_size: listings at a time.
        packed: whether prompts may share bins; see `RunConfig.packed`.
        grammar: of the lists; None for whatever the generator writes.
        label: name of the progress bar.
        known: attributes by listing id that are taken over and not written anew.
        key: what a killed call must share with the one that goes on, besides the generator.

    Returns:
        Attribute text by listing id.

    Raises:
        ConfigError: `out` exists and is no file of attributes.
    """
    require_attributes_file(out)
    # Lines of another generator under the same name must not be continued.
    # No name of a passing file: what is written goes home with the run.
    partial_path = out.with_name(f"{out.name}.{identity(architecture, params)}{key}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = read_partial(partial_path)
    taken = {i: _record(i, text) for i, text in (known or {}).items() if i not in done}
    done |= taken
    # All have read what a killed run left before the first one goes on with it.
    barrier(f"{label} starts")
    rest = [int(i) for i in indices if builder.listings[int(i)].listing_id not in done]
    write = partial(write_attributes, mesh=mesh, batch_size=batch_size, packed=packed)
    batches = write(architecture, params, builder, rest, grammar=grammar)
    records = (
        [
            _record(
                builder.listings[x.listing].listing_id,
                x.attributes,
                x.text if x.malformed else None,
            )
            for x in batch
        ]
        for batch in batches
    )
    for record in write_records(
        records, out, partial_path, count=len(rest), label=label, first=list(taken.values())
    ):
        done[record["listing_id"]] = record
    bad = [x for x in done.values() if "raw" in x]
    if bad:
        repaired = sum(bool(x["attributes"]) for x in bad)
        log_info(
            f"{label}: {len(bad)} of {len(done)} lists were malformed "
            f"({100 * len(bad) / len(done):.1f} %), {repaired} of them repaired"
        )
    return {key: record["attributes"] for key, record in done.items()}


def write_records(
    batches: Iterable[Sequence[JsonObject]],
    out: Path,
    partial_path: Path,
    *,
    count: int,
    label: str,
    first: Sequence[JsonObject] = (),
) -> list[JsonObject]:
    """Append records to `partial_path` batch by batch, and rename it to `out` at the end.

    Args:
        batches: made while they are written.
        out: JSON lines.
        partial_path: what a killed run has left of them is kept.
        count: records in all batches, for the progress bar.
        label: of the bar.
        first: records that come before them.

    Returns:
        The records of the batches.
    """
    written: list[JsonObject] = []
    kept_at = time.monotonic()
    try:
        # Of several processes one writes; the others have no file.
        kept = partial_path if is_writer() else Path(os.devnull)
        with kept.open("a", encoding="utf-8") as file, Progress(label, count) as bar:
            file.writelines(_line(record) for record in first)
            for batch in batches:
                file.writelines(_line(record) for record in batch)
                file.flush()
                written += batch
                bar.update(len(written))
                if time.monotonic() - kept_at > KEEP_EVERY:
                    keep(out)
                    kept_at = time.monotonic()
                heed()
    except OSError as error:
        raise (disk_full(out) if is_disk_full(error) else error) from error
    if is_writer():
        partial_path.replace(out)
    return written


def require_attributes_file(out: Path) -> None:
    """Refuse a file that `annotate` must not replace.

    Raises:
        ConfigError: it is neither empty nor a file of attributes.
    """
    require_own_output(out, "afmrl annotate", file=_is_own)


def _is_own(path: Path) -> bool:
    """Whether the first line is a record as they are written here."""
    found = first_record(path).keys()
    return {"listing_id", "attributes"} <= found <= {"listing_id", "attributes", "raw"}


def _line(record: JsonObject) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _record(listing_id: str, attributes: str, raw: str | None = None) -> JsonObject:
    """A line; `raw` is what was written, if it is malformed."""
    known = {"listing_id": listing_id, "attributes": attributes}
    return known if raw is None else known | {"raw": raw}


def read_partial(path: Path) -> dict[str, JsonObject]:
    """Records of an unfinished file, by listing id."""
    return {record["listing_id"]: record for record in read_records(path, repair=is_writer())}
