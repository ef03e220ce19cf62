"""How long a query takes: encoding and searching, measured where the evaluation runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import AfmrlError
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.scann import ScannIndex
from afmrl_jax.retrieval.types import SearchIndex, SearchResult
from afmrl_jax.runtime.distributed import broadcast_from_first
from afmrl_jax.runtime.hardware import machine
from afmrl_jax.types import JsonObject

REPEATS = 30
SECONDS = 1.0
"""Time limit for repeating a slow part, after at least three repetitions."""
K = 10


def timed(work: Callable[[int], object]) -> dict[str, float]:
    """Median and 95th percentile of some repetitions in milliseconds, after a warm-up.

    Args:
        work: called with the number of the repetition.
    """
    work(0)
    found: list[float] = []
    # Processes differ in speed, and each repetition needs all of them.
    while broadcast_from_first(len(found) < 3 or (len(found) < REPEATS and sum(found) < SECONDS)):
        begin = time.perf_counter()
        work(len(found))
        found.append(time.perf_counter() - begin)
    middle, high = np.percentile(found, [50, 95])
    return {
        "p50_ms": round(1e3 * float(middle), 3),
        "p95_ms": round(1e3 * float(high), 3),
        "repeats": len(found),
    }


def latency(
    encoder: Encoder,
    builder: RowBuilder,
    attributes: Mapping[str, str] | None,
    vectors: np.ndarray,
) -> JsonObject:
    """Times of encoding one listing and a batch, and of searching with one vector and a batch.

    Encoding includes decoding and resizing the picture and tokenizing; attributes are given, so the
    generator's time is not included.

    Args:
        encoder: the embedder of a system.
        builder: rows of some listings.
        attributes: attribute text by listing id, or None.
        vectors: float32 [n d], the gallery, and queries.

    Returns:
        By part, milliseconds of a call as `timed` gives them; `batch` is its number of listings,
        `gallery` the number of searched vectors, `machine` the machine.
    """
    listings, batch = builder.listings, encoder.batch_size
    # A mesh divides a batch over its devices, so a single query occupies one row of each.
    least = 1 if encoder.mesh is None else int(encoder.mesh.shape.get("data", 1))
    single = dataclasses.replace(encoder, batch_size=least)

    def encode(which: Encoder, size: int) -> Callable[[int], np.ndarray]:
        # The same listings each time, so that nothing compiles meanwhile; a new builder each time,
        # which has not decoded any of their pictures.
        chosen = [listings[n % len(listings)] for n in range(size)]
        places = np.arange(size)

        def once(_: int) -> np.ndarray:
            fresh = RowBuilder.of(chosen, builder.tokenizer, builder.image, builder.text)
            return which.embed(fresh, places, attributes)

        return once

    out: JsonObject = {
        "machine": machine(),
        "batch": batch,
        "gallery": len(vectors),
        "encode_one": timed(encode(single, 1)),
        "encode_batch": timed(encode(encoder, batch)),
    }
    ids = [str(n) for n in range(len(vectors))]
    kinds: dict[str, type[ExactIndex | ScannIndex]] = {"exact": ExactIndex, "scann": ScannIndex}
    for name, kind in kinds.items():
        try:
            index = kind(ids, vectors)
        except AfmrlError:  # ScaNN is not installed everywhere.
            continue
        for size, label in ((1, "one"), (batch, "batch")):
            places = np.arange(size)

            def search(
                n: int, index: SearchIndex = index, places: np.ndarray = places
            ) -> SearchResult:
                return index.search(vectors[(places + n) % len(vectors)], K)

            out[f"search_{name}_{label}"] = timed(search)
    return out
