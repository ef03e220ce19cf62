"""AGCL: memory and time of value and gradient, against dense forms and row chunks; GradCache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from afmrl_jax.data.attributes.bm25_terms import batch_vocabulary
from afmrl_jax.errors import ConfigError
from afmrl_jax.objectives.bm25 import Bm25Statistics, Bm25Terms, fit_bm25
from afmrl_jax.performance.benchmarks import gradcache
from afmrl_jax.performance.benchmarks.agcl_reference import (
    Loss,
    dense,
    dense_by_hand,
    form,
    row_chunks,
)
from afmrl_jax.performance.benchmarks.gradcache import GradcacheSettings
from afmrl_jax.performance.benchmarks.texts import attribute_texts
from afmrl_jax.performance.record import check_writable, is_record_of, ratios, spread, write_record
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.types import AnyArray, JsonObject

Part = Literal["memory", "time", "gradcache"]
Measured = tuple[dict[str, float], list[JsonObject]]
CLOSE = 1e-4
"""Largest relative difference of gradients between the sides, float32."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and at which sizes."""

    parts: tuple[Part, ...] = ("memory", "time", "gradcache")
    """Memory is read from compiled programs, which are not run."""
    size: int = 1536
    """Dimension of the vectors; Qwen2-VL-2B has 1536."""
    memory_batches: tuple[int, int] = (16384, 65536)
    """Batches whose memory is compared, the `16k` and `64k` of the figures."""
    time_batch: int = 4096
    """Batch whose time is compared, the `4k` of the figures."""
    chunks: tuple[int, ...] = (256, 512, 1024)
    """Rows per chunk of the row-chunk form; the best for time and the best for memory count."""
    tile: int = 0
    """Rows and columns of our tiles; 0 for the default of the loss. Our form is `auto`."""
    vocab: int = 20_000
    """Terms of the catalogue."""
    longest: int = 16
    """Most terms per attribute text."""
    repeats: int = 7
    """Rounds in which every form is measured once; ratios are taken within a round."""
    seed: int = 0
    gradcache: GradcacheSettings = field(default_factory=GradcacheSettings)
    """Settings of the part that trains in chunks."""

    @property
    def tiles(self) -> tuple[int, int] | None:
        """The tile argument of the loss."""
        return (self.tile, self.tile) if self.tile else None


def value_and_gradient(loss: Loss) -> jax.stages.Wrapped:
    """The compiled function that is measured: gradients by both sides' vectors."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def temp_bytes(loss: Loss, shapes: tuple) -> int:
    """Temporary memory of a compiled value and gradient, outputs not counted."""
    found = value_and_gradient(loss).lower(*shapes).compile().memory_analysis()
    if found is None:
        raise ConfigError("this backend does not report the memory of a program: measure on a CPU")
    return int(found.temp_size_in_bytes)


def shapes_of(batch: int, settings: Settings) -> tuple:
    """Shapes of a loss's arguments, for compiling only."""
    vocab = min(settings.vocab, batch * settings.longest)

    def shape(*sizes: int, kind: DTypeLike = jnp.float32) -> AnyArray:
        return jax.ShapeDtypeStruct(sizes, kind)

    texts = shape(batch, settings.longest, kind=jnp.int32)
    terms = Bm25Terms(Bm25Statistics(shape(vocab), shape()), texts, texts)
    vectors = shape(batch, settings.size)
    return vectors, vectors, terms, shape(batch, kind=jnp.int32)


def batch_of(settings: Settings) -> tuple:
    """Noisy pairs with attributes: a candidate shares most of its query's terms."""
    count, rng = settings.time_batch, np.random.default_rng(settings.seed)
    queries = rng.normal(size=(count, settings.size))
    candidates = queries + 1.5 * rng.normal(size=queries.shape)
    vectors = [
        jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
        for x in (queries, candidates)
    ]
    asked = attribute_texts(count, settings.vocab, settings.longest, settings.seed)
    other = attribute_texts(count, settings.vocab, settings.longest, settings.seed + 1)
    texts = np.where((rng.random(asked.shape) < 0.2) & (asked >= 0), np.abs(other), asked)
    statistics = fit_bm25(texts, settings.vocab)
    local = batch_vocabulary(asked, texts, settings.vocab)
    terms = Bm25Terms(
        statistics.restricted(jnp.asarray(local.terms)),
        jnp.asarray(local.query),
        jnp.asarray(local.candidate),
    )
    # One product in sixteen appears twice.
    ids = np.where(rng.random(count) < 1 / 16, rng.integers(0, count, count), np.arange(count))
    return *vectors, terms, jnp.asarray(ids, jnp.int32)


def measure_memory(settings: Settings) -> Measured:
    """Temporary memory of value and gradient: ours against the literal formula and row chunks."""
    figures: dict[str, float] = {}
    details: list[JsonObject] = []
    for label, batch in zip(("16k", "64k"), settings.memory_batches, strict=True):
        shapes = shapes_of(batch, settings)
        for symmetric in (True, False):
            sides: dict[str, Loss] = {
                "ours": form("auto", symmetric, tile=settings.tiles),
                "literal": form("dense", symmetric),
                "dense": dense(symmetric),
                **{
                    f"row_chunks_{n}": row_chunks(symmetric, n, weighted=False)
                    for n in settings.chunks
                },
            }
            found: dict[str, int] = {}
            with Progress(f"memory {label}", len(sides)) as progress:
                for name, loss in sides.items():
                    found[name] = temp_bytes(loss, shapes)
                    progress.update(len(found))
            chunked = min(v for k, v in found.items() if k.startswith("row"))
            ratio = {
                "literal": min(found["literal"], found["dense"]) / found["ours"],
                "rowchunk": chunked / found["ours"],
            }
            detail = {"part": "memory", "batch": batch, "size": settings.size}
            details.append(detail | {"symmetric": symmetric, "temp_bytes": found, "ratios": ratio})
            log_info(f"memory {label}, symmetric {symmetric}: {ratio}")
            for name, value in ratio.items():
                # The weaker of the two kinds of loss is quoted.
                key = f"temp_ratio_{name}_{label}"
                figures[key] = min(figures.get(key, np.inf), round(value, 3))
    del figures["temp_ratio_rowchunk_16k"]
    return figures, details


def measure_time(settings: Settings) -> Measured:
    """Seconds of value and gradient; every form runs once per round, so all see the same noise."""
    batch, worst = batch_of(settings), {"dense": 0.0, "rowchunk": 0.0}
    details = []
    for symmetric in (True, False):
        losses: dict[str, Loss] = {
            "ours": form("auto", symmetric, tile=settings.tiles),
            "ours_tiled": form("tiled", symmetric, tile=settings.tiles),
            "dense_literal": form("dense", symmetric),
            "dense_lean": dense(symmetric),
            "dense_by_hand": dense_by_hand(symmetric),
            **{f"row_chunks_{n}": row_chunks(symmetric, n) for n in settings.chunks},
        }
        sides = {name: value_and_gradient(loss) for name, loss in losses.items()}
        _agree(sides, batch, symmetric, settings)
        samples = _rounds(sides, batch, settings.repeats, f"time, symmetric {symmetric}")
        ratio = {name: ratios(samples["ours"], x) for name, x in samples.items() if name != "ours"}
        for kind, start in (("dense", "dense"), ("rowchunk", "row")):
            # The best other form is the one against which we are slowest. `ours_tiled`, which
            # keeps no scores, is only in the JSON.
            most = max(v["median"] for k, v in ratio.items() if k.startswith(start))
            worst[kind] = max(worst[kind], most)
            log_info(f"time, symmetric {symmetric}: {most:.3f} of the best {kind} form")
        shape = {"batch": settings.time_batch, "size": settings.size, "symmetric": symmetric}
        seconds = {name: spread(x) for name, x in samples.items()}
        details.append({"part": "time", **shape, "seconds": seconds, "ours_over": ratio})
    return {f"time_ratio_{kind}_4k": value for kind, value in worst.items()}, details


def _agree(
    sides: dict[str, jax.stages.Wrapped], batch: tuple, symmetric: bool, settings: Settings
) -> None:
    """Check that all sides compute the same gradient; otherwise timing is meaningless.

    Raises:
        RuntimeError: one side's gradient differs.
    """
    exact = form("tiled", symmetric, tile=settings.tiles, exact_reverse=True)
    expected = {False: sides["ours"](*batch)[1], True: value_and_gradient(exact)(*batch)[1]}
    for name, side in sides.items():
        wanted = expected[name.startswith("row")]
        for one, two in zip(side(*batch)[1], wanted, strict=True):
            difference = float(jnp.max(jnp.abs(one - two)) / jnp.max(jnp.abs(two)))
            if not difference < CLOSE:
                raise RuntimeError(f"{name}: gradients differ by {difference:.2g} of the largest")


def _rounds(
    sides: dict[str, jax.stages.Wrapped], batch: tuple, repeats: int, name: str
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {side: [] for side in sides}
    with Progress(name, repeats) as progress:
        for done in range(1, repeats + 1):
            for side, function in sides.items():
                start = time.perf_counter()
                jax.block_until_ready(function(*batch))
                samples[side].append(time.perf_counter() - start)
            progress.update(done)
    return samples


PARTS: dict[Part, Callable[[Settings], Measured]] = {
    "memory": measure_memory,
    "time": measure_time,
    "gradcache": lambda settings: gradcache.measure(settings.gradcache),
}


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Measure the chosen parts, and write `out` at the end.

    Raises:
        ConfigError: `out` cannot be written; before anything is measured.
        RuntimeError: two sides disagree.
    """
    check_writable(out, is_record_of("agcl"))
    figures: dict[str, float] = {}
    details: list[JsonObject] = []
    for part in settings.parts:
        found, detail = PARTS[part](settings)
        figures, details = figures | found, [*details, *detail]
    write_record(out, "agcl", figures, details)
    return figures
