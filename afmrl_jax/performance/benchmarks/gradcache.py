"""Batches beyond memory: what chunks cost in time, save in memory, and waste on padding."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import jax
import numpy as np

from afmrl_jax.config import (
    AgclConfig,
    Execution,
    ImageConfig,
    InputDropout,
    LoraConfig,
    QwenVLConfig,
    TextBudget,
    TextConfig,
    VisionConfig,
)
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.batching.chunks import Chunker
from afmrl_jax.data.batching.collate import Row, collate
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.data.batching.shapes import ShapeCounter, padding_counts
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.sources.batches import ContrastiveBatch
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.performance.benchmarks.mixed_catalogue import mixed_catalogue
from afmrl_jax.performance.record import ratios, spread
from afmrl_jax.runtime.progress import Progress, log_info
from afmrl_jax.training.agcl import make_agcl_step
from afmrl_jax.training.partition import learns
from afmrl_jax.training.state import TrainState, initial_state, make_optimizer
from afmrl_jax.types import JsonObject

TOKEN = SimpleNamespace(pad_id=0, vision_start=1, vision_end=2, image_pad_id=3)
FIRST_WORD = 8
WHAT = ("text", "patch")
LARGER = 64
"""Size of the chunked batch, in multiples of the batch that fits at once."""


@dataclass(frozen=True)
class GradcacheSettings:
    """Sizes of the model and the batches."""

    layers: int = 8
    hidden_dim: int = 256
    vision_depth: int = 4
    side: int = 4
    """Visual tokens along one side of the square picture."""
    text_tokens: int = 32
    pairs: int = 32
    """Pairs of the timed batch."""
    chunk_rows: int = 16
    """Rows per chunk of that batch."""
    repeats: int = 9
    """Pairs of steps; the median of their ratios is reported."""
    memory_cap_mib: int = 64
    """Limit on a step's temporaries, in the search for the largest batch."""
    catalogue_products: int = 1500
    """Products of the mixed catalogue, two listings each."""
    catalogue_pairs: int = 512
    """Pairs of a batch from it."""
    catalogue_chunk_tokens: int = 1024
    catalogue_steps: int = 12

    @classmethod
    def tiny(cls) -> GradcacheSettings:
        """For tests: every part takes seconds."""
        return cls(2, 32, 1, 2, 4, 4, 2, 2, 2, 120, 32, 512, 3)

    @property
    def image(self) -> ImageConfig:
        """Settings under which every picture is one bin."""
        pixels = (self.side * 2 * 14) ** 2
        return ImageConfig.qwen(min_pixels=pixels, max_pixels=pixels)

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.side**2 + self.text_tokens

    def config(self) -> QwenVLConfig:
        """A model in Qwen2-VL's proportions with adapters."""
        width, heads = self.hidden_dim, max(1, self.hidden_dim // 64)
        eighth = width // heads // 8
        section = (width // heads // 2 - 2 * eighth, eighth, eighth)
        text = TextConfig(
            1024, width, 11 * width // 4, self.layers, heads, 1, mrope_section=section
        )
        vision = VisionConfig(
            self.vision_depth, width, heads, 4 * width, width, patch_size=14, temporal_patch_size=2
        )
        return QwenVLConfig("qwen2_vl", vision, text, TOKEN.image_pad_id, LoraConfig())


def make_rows(settings: GradcacheSettings, count: int, seed: int = 0) -> list[Row]:
    """Rows of equal length: a picture of noise, and words."""
    rng = np.random.default_rng(seed)
    places, config = settings.side**2, settings.image
    grid = (2 * settings.side, 2 * settings.side)
    position = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    rows = []
    for _ in range(count):
        pixels = rng.integers(0, 256, (4 * places, config.patch_bytes), np.uint8)
        words = rng.integers(FIRST_WORD, 1024, settings.text_tokens - 2).tolist()
        tokens = [TOKEN.vision_start, *[TOKEN.image_pad_id] * places, TOKEN.vision_end, *words]
        rows.append(Row(tokens, (Patches(pixels, grid, position.astype(np.int32)),)))
    return rows


class _Steps:
    """A training step of adapters, and its batches, at once or in chunks."""

    def __init__(self, settings: GradcacheSettings):
        self._settings = settings
        execution = Execution(scan=True)
        self._architecture = Architecture.of(settings.config(), execution)
        agcl = dataclasses.replace(AgclConfig().infonce(), prefix_weight=0.0, steps=1000)
        self._optimizer = make_optimizer(agcl.optimizer, agcl.steps)
        self.step = make_agcl_step(self._architecture, agcl, None, self._optimizer)

    def parameters(self) -> tuple[Params, TrainState]:
        """The frozen parameters, and a state with the trained ones."""
        params = self._architecture.init(0)
        own = {n: x for n, x in params.items() if learns(n, "lora")}
        frozen = {n: x for n, x in params.items() if n not in own}
        return frozen, initial_state(own, self._optimizer)

    def whole(self, rows: Sequence[Row]) -> ContrastiveBatch:
        """A batch that is encoded at once."""
        batch = collate(rows, TOKEN, self._settings.image, self._settings.length)
        return ContrastiveBatch(batch, np.arange(len(rows) // 2, dtype=np.int32))

    def chunked(self, rows: Sequence[Row], chunk_rows: int) -> ContrastiveBatch:
        """The same batch in chunks."""
        length = self._settings.length
        chunker = Chunker.of(
            [rows, rows],
            TOKEN,
            self._settings.image,
            TextBudget(buckets=(length,)),
            tokens=chunk_rows * length,
            shares=1,
        )
        return ContrastiveBatch(chunker(rows), np.arange(len(rows) // 2, dtype=np.int32))

    def temporaries(self, batch: ContrastiveBatch) -> int:
        """Bytes that the compiled step takes besides its arguments and results."""
        frozen, state = jax.eval_shape(self.parameters)
        key = jax.eval_shape(lambda: jax.random.key(0))
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        step = cast(jax.stages.Wrapped, self.step)
        memory = step.lower(frozen, state, batch, key).compile().memory_analysis()
        assert memory is not None
        return int(memory.temp_size_in_bytes)


def time_ratio(settings: GradcacheSettings) -> tuple[float, list[JsonObject]]:
    """Seconds of a chunked step over those of the same step at once.

    All rows have equal length, so chunks gain nothing from less padding.
    """
    steps = _Steps(settings)
    rows = make_rows(settings, 2 * settings.pairs)
    batches = [
        jax.device_put(x) for x in (steps.whole(rows), steps.chunked(rows, settings.chunk_rows))
    ]
    frozen, _ = steps.parameters()
    states = [steps.parameters()[1] for _ in batches]
    key, losses = jax.random.key(0), [0.0, 0.0]

    def seconds(which: int) -> float:
        began = time.perf_counter()
        states[which], metrics = steps.step(frozen, states[which], batches[which], key)
        jax.block_until_ready(states[which])
        losses[which] = float(metrics["loss"])
        return time.perf_counter() - began

    for which in (0, 1):
        seconds(which)
    if abs(losses[0] - losses[1]) > 1e-4:
        raise RuntimeError(f"the losses differ, {losses}; timing would be meaningless")
    samples: tuple[list[float], list[float]] = ([], [])
    with Progress("gradcache", settings.repeats) as progress:
        for done in range(1, settings.repeats + 1):
            for which in (0, 1):
                samples[which].append(seconds(which))
            progress.update(done)
    found = ratios(samples[1], samples[0])
    detail = {
        "part": "gradcache_time",
        "rows": len(rows),
        "rows_of_a_chunk": settings.chunk_rows,
        "losses_of_the_first_step": losses,
        "whole_seconds": spread(samples[0]),
        "chunked_seconds": spread(samples[1]),
        "ratio": found,
    }
    return found["median"], [detail]


def beyond_memory(settings: GradcacheSettings) -> list[JsonObject]:
    """One training step on a batch `LARGER` times the largest that fits at once under the cap.

    Raises:
        RuntimeError: it does not fit.
    """
    steps, cap = _Steps(settings), settings.memory_cap_mib * 2**20
    fitting, taken, too_much = 0, 0, 0
    pairs = 1
    while not too_much:
        need = steps.temporaries(steps.whole(make_rows(settings, 2 * pairs)))
        if need <= cap:
            fitting, taken, pairs = pairs, need, 2 * pairs
        else:
            too_much = need
    if not fitting:
        raise RuntimeError(f"not even one pair fits {cap} bytes; raise memory_cap_mib")
    rows = make_rows(settings, 2 * LARGER * fitting)
    chunked = steps.chunked(rows, max(1, fitting))
    need = steps.temporaries(chunked)
    if need > cap:
        raise RuntimeError(f"{LARGER * fitting} pairs in chunks take {need} bytes of {cap}")
    frozen, state = steps.parameters()
    _, metrics = steps.step(frozen, state, jax.device_put(chunked), jax.random.key(0))
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if not (np.isfinite(loss) and norm > 0):
        raise RuntimeError(f"the step gave loss {loss} and gradient norm {norm}")
    detail = {
        "part": "beyond_memory",
        "cap_bytes": cap,
        "pairs_at_once": fitting,
        "temp_bytes_at_once": taken,
        "temp_bytes_of_twice_as_many_at_once": too_much,
        "pairs_in_chunks": LARGER * fitting,
        "temp_bytes_in_chunks": need,
        "loss": loss,
        "gradient_norm": norm,
    }
    log_info(f"{LARGER * fitting} pairs train in {need / 2**20:.0f} MiB, {fitting} fit at once")
    return [detail]


def padding_waste(settings: GradcacheSettings) -> tuple[float, list[JsonObject]]:
    """The larger of the padded shares of text and of patches, over batches of a mixed catalogue."""
    listings = mixed_catalogue(settings.catalogue_products)
    texts = {x.listing_id: format_attributes((x.attributes or {}).items()) for x in listings}
    tokenizer = BpeTokenizer.train([x.title for x in listings] + list(texts.values()), 1024)
    builder = RowBuilder.of(listings, tokenizer, ImageConfig(), TextBudget())

    def source(chunk_tokens: int | None) -> ContrastiveSource:
        return ContrastiveSource(
            builder,
            steps=settings.catalogue_steps,
            batch_size=settings.catalogue_pairs,
            sibling_share=0.0,
            seed=0,
            attributes_in_input=Lists(texts),
            attributes_for_terms=None,
            vocabulary=None,
            dropout=InputDropout(),
            chunk_tokens=chunk_tokens,
        )

    chunked, at_once, shapes = source(settings.catalogue_chunk_tokens), source(None), ShapeCounter()
    totals: dict[str, Counter[str]] = {"in_chunks": Counter(), "at_once": Counter()}
    for step in range(settings.catalogue_steps):
        for kind, batches in (("in_chunks", chunked), ("at_once", at_once)):
            rows = batches[step].rows
            for what, (padded, places) in padding_counts(rows).items():
                totals[kind].update({f"{what}_padded": padded, f"{what}_places": places})
            if kind == "in_chunks":
                shapes.add(rows)
    shares = {
        kind: {what: round(n[f"{what}_padded"] / n[f"{what}_places"], 4) for what in WHAT}
        for kind, n in totals.items()
    }
    detail = {
        "part": "padding",
        "pairs": settings.catalogue_pairs,
        "chunk_tokens": settings.catalogue_chunk_tokens,
        "batches": settings.catalogue_steps,
        "padded_shares": shares,
        "programs": len(shapes),
    }
    log_info(f"padding: {shares['in_chunks']} in chunks, {shares['at_once']} at once; {shapes}")
    return max(shares["in_chunks"].values()), [detail]


def measure(settings: GradcacheSettings) -> tuple[dict[str, float], list[JsonObject]]:
    """Figures `gradcache_time_ratio` and `padding_waste`, and the details of all parts."""
    ratio, details = time_ratio(settings)
    waste, more = padding_waste(settings)
    figures = {"gradcache_time_ratio": ratio, "padding_waste": waste}
    return figures, [*details, *more, *beyond_memory(settings)]
