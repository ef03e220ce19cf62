"""What a row of the sweep computes: real batches of a catalogue, and the package's own steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import (
    AgclConfig,
    DistillConfig,
    Execution,
    ImageConfig,
    InputDropout,
    LoraConfig,
    RarConfig,
    TextBudget,
    VisionConfig,
)
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.text_format import format_attributes
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.batches import Batch
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.prompts import PromptCollator, PromptSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.generation import Generation, generate
from afmrl_jax.models.lora import with_lora
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.objectives.bm25 import Bm25Statistics
from afmrl_jax.parallel.sharding import place, place_batch, shardings
from afmrl_jax.performance.sweep.cell import Cell
from afmrl_jax.training.agcl import contrastive_source, make_agcl_step, term_statistics
from afmrl_jax.training.distill import make_distill_step
from afmrl_jax.training.partition import learns
from afmrl_jax.training.rar.policy_gradient import Samples, completion_scores, update
from afmrl_jax.training.rar.rollout import encode_images, sample
from afmrl_jax.training.state import TrainState, initial_state, make_optimizer

if TYPE_CHECKING:
    from jaxtyping import PyTree

WORDS = 2048
"""Size of the tokenizer; the model's vocabulary may be larger."""
Source = ContrastiveSource | DistillSource | PromptSource
Step = Callable[[Batch, jax.Array], object]
"""(placed batch, key) -> something to wait for."""
ALL_SHOWN = InputDropout(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@cache
def catalogue(
    name: str, columns: str | None = None
) -> tuple[list[Listing], list[str], BpeTokenizer]:
    """Listings with attributes, their attribute lists, and a tokenizer trained on both."""
    listings = [x for x in load_catalogue(name, columns=columns).listings if x.attributes]
    if not listings:
        raise ConfigError(f"{name} has no listing with attributes; choose another --catalogue")
    texts = [format_attributes((x.attributes or {}).items()) for x in listings]
    return listings, texts, BpeTokenizer.train([x.title for x in listings] + texts, WORDS)


def picture_budget(vision: VisionConfig, tokens: int) -> ImageConfig:
    """Pictures of at most `tokens` visual tokens, in a single number of bins: a single program."""
    side = vision.patch_size * vision.merge_size
    return ImageConfig(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        # Small pictures are enlarged; how much of the budget they fill is counted, not assumed.
        min_pixels=max(side**2, tokens * side**2 // 2),
        max_pixels=tokens * side**2,
        pack_shares=(1.0,),
    )


class Work:
    """One cell: batches on the host, and a compiled step from batch to metrics."""

    def __init__(self, cell: Cell, mesh: Mesh, name: str, columns: str | None = None):
        self._cell, self._mesh = cell, mesh
        self._listings, self._texts, self._tokenizer = catalogue(name, columns)
        config = preset(cell.model)
        if config.text.vocab_size < WORDS:
            raise ConfigError(f"{cell.model} has fewer than {WORDS} words")
        config = dataclasses.replace(config, image_token_id=self._tokenizer.image_pad_id)
        self.architecture = Architecture.of(config, Execution(dtype=cell.dtype, remat=cell.remat))
        if cell.trained == "lora" and cell.task != "generate":
            self.architecture = with_lora(self.architecture, LoraConfig())
        self._builder = self._rows()
        self._agcl = dataclasses.replace(
            AgclConfig(), steps=1000, batch_size=cell.batch_size, dropout=ALL_SHOWN
        )
        self._distill = DistillConfig(
            steps=1000,
            batch_size=cell.batch_size,
            logits_at_once=64 if config.text.vocab_size > 1 << 14 else None,
        )
        self._optimizer = make_optimizer(self._agcl.optimizer, 1000)
        self._source = self._make_source()
        self.programs: list[jax.stages.Compiled] = []
        """Compiled programs, in the order in which a step runs them."""

    @property
    def source(self) -> Source:
        """Batches by number."""
        return self._source

    def placed(self, batch: Batch) -> Batch:
        """A batch on the devices, without the fields that only the loop reads."""
        return place_batch(batch._replace(bad_pictures=None), self._mesh)

    def compile(self, batch: Batch) -> tuple[float, Step]:
        """Seconds of compiling, and the step.

        The parameters are created first; they are random, which does not affect the time.
        """
        learning, frozen = self._parameters()
        if self._cell.task == "generate":
            return self._compile_generate(frozen, batch)
        state = place(initial_state(learning, self._optimizer), self._mesh)
        if self._cell.task == "rar":
            return self._compile_rar(frozen, state, batch)
        if self._cell.task == "agcl":
            _, statistics = self._terms
            step = make_agcl_step(self.architecture, self._agcl, statistics, self._optimizer)
        else:
            step = make_distill_step(self.architecture, self._distill, self._optimizer)
        key = jax.random.key(0)
        seconds, program = self._compiled(cast(jax.stages.Wrapped, step), frozen, state, batch, key)
        holder = [state]

        def call(batch: Batch, key: jax.Array) -> object:
            holder[0], metrics = program(frozen, holder[0], batch, key)
            return holder[0].step, metrics

        return seconds, call

    def _compiled(
        self, function: jax.stages.Wrapped, *arguments: PyTree, **static: object
    ) -> tuple[float, jax.stages.Compiled]:
        began = time.perf_counter()
        self.programs.append(function.lower(*arguments, **static).compile())
        return time.perf_counter() - began, self.programs[-1]

    def _compile_generate(self, params: Params, batch: Batch) -> tuple[float, Step]:
        cell, architecture = self._cell, self.architecture

        @jax.jit
        def write(params: Params, rows: VLBatch, key: jax.Array) -> jax.Array:
            return generate(
                architecture.bind(params),
                rows,
                group_size=cell.group_size,
                max_new_tokens=cell.max_new_tokens,
                temperature=1.0,
                key=key,
                # No token ends a list, so all have full length.
                eos_id=architecture.config.text.vocab_size,
                pad_id=0,
            ).tokens

        seconds, program = self._compiled(write, params, batch.rows, jax.random.key(0))
        return seconds, lambda batch, key: program(params, batch.rows, key)

    def _compile_rar(self, frozen: Params, state: TrainState, batch: Batch) -> tuple[float, Step]:
        """Sampling, scoring with the reference and the update.

        Rewards are random: the embedder's and the grammar's judgment passes through the host and
        is not part of this figure.
        """
        cell, architecture = self._cell, self.architecture
        settings = RarConfig(group_size=cell.group_size, temperature=1.0)
        reference = {**frozen, **architecture.as_computed(state.params)}
        policy = {**frozen, **state.params}
        specials = (architecture.config.text.vocab_size, 0)
        key, rows = jax.random.key(0), batch.rows
        assert isinstance(rows, VLBatch)
        asked: dict[str, object] = {
            "group_size": cell.group_size,
            "max_new_tokens": cell.max_new_tokens,
            "specials": specials,
        }
        total = 0.0
        seen = None
        if cell.trained != "all":
            total, seen = self._compiled(encode_images, architecture, reference, rows)
            rows = rows._replace(visual=seen(reference, rows))
        seconds, write = self._compiled(sample, architecture, policy, rows, key, settings, **asked)
        samples = self._samples(rows, write(policy, rows, key), np.random.default_rng(0))
        again = (samples.tokens, samples.mask)
        more, recall = self._compiled(
            completion_scores,
            architecture,
            reference,
            rows,
            *again,
            temperature=settings.temperature,
            parts=1,
        )
        learn = jax.jit(
            partial(update, architecture, settings, self._optimizer),
            static_argnames="parts",
            donate_argnames="state",
        )
        last, train = self._compiled(learn, frozen, state, samples, parts=1)
        holder, rng = [state], np.random.default_rng(1)

        def call(batch: Batch, key: jax.Array) -> object:
            rows = batch.rows
            assert isinstance(rows, VLBatch)
            if seen is not None:
                rows = rows._replace(visual=seen(reference, rows))
            found = write({**frozen, **holder[0].params}, rows, key)
            samples = self._samples(rows, found, rng)
            scores = recall(reference, rows, samples.tokens, samples.mask)
            holder[0], metrics = train(frozen, holder[0], samples._replace(reference=scores))
            return holder[0].step, metrics

        return total + seconds + more + last, call

    def _samples(self, rows: VLBatch, found: Generation, rng: np.random.Generator) -> Samples:
        shape = found.tokens.shape[:2]
        drawn = place_batch(
            (rng.integers(0, 2, shape).astype(np.float32), np.zeros(shape, bool)), self._mesh
        )
        tokens, mask, old = place_batch((found.tokens, found.mask, found.logprobs), self._mesh)
        return Samples(rows, tokens, mask, old, old, *drawn)

    def _parameters(self) -> tuple[Params, Params]:
        """Trained parameters (float32) and frozen ones (bfloat16), created with their shardings."""
        learning: Params = {}
        frozen: Params = {}
        places = shardings(self.architecture.shapes, self._mesh)
        keys = jax.random.split(jax.random.key(0), len(places))
        for key, (name, struct) in zip(keys, self.architecture.shapes.items(), strict=True):
            own = self._cell.task != "generate" and learns(name, self._cell.trained)
            dtype = jnp.float32 if own else jnp.bfloat16
            make = jax.jit(
                lambda key, shape=struct.shape, dtype=dtype: (
                    0.02 * jax.random.normal(key, shape, jnp.float32)
                ).astype(dtype),
                out_shardings=places[name],
            )
            (learning if own else frozen)[name] = make(key)
        return learning, frozen

    @cached_property
    def _by_listing(self) -> dict[str, str]:
        return {x.listing_id: t for x, t in zip(self._listings, self._texts, strict=True)}

    @cached_property
    def _terms(self) -> tuple[Bm25Vocabulary, Bm25Statistics]:
        """Vocabulary and BM25 statistics of the lists' terms."""
        return term_statistics(self._builder, self._by_listing)

    def _rows(self) -> RowBuilder:
        cell, vision = self._cell, preset(self._cell.model).vision
        image = picture_budget(vision, cell.visual_tokens)
        title = (cell.text_tokens - 6) // 2
        text = TextBudget(
            buckets=(cell.visual_tokens + cell.text_tokens,),
            max_title_tokens=title,
            max_attribute_tokens=cell.text_tokens - 6 - title,
        )
        return RowBuilder.of(self._listings, self._tokenizer, image, text)

    def _make_source(self) -> Source:
        cell, builder = self._cell, self._builder
        if cell.task == "agcl":
            texts, (vocabulary, _) = self._by_listing, self._terms
            pairs = contrastive_source(
                builder, self._agcl, 0, attributes=texts, read=Lists(texts), vocabulary=vocabulary
            )
            source: Source = pairs
            found = pairs.batch_size
        elif cell.task == "distill":
            source = DistillSource(
                builder, self._texts, steps=1000, batch_size=cell.batch_size, seed=0
            )
            found = 2 * (min(cell.batch_size, len(self._texts)) // 2)
        else:
            everything = np.arange(len(self._listings), dtype=np.int32)
            source = PromptSource(
                PromptCollator(
                    builder, builder.text.buckets[-1] - builder.text.max_attribute_tokens
                ),
                everything,
                steps=1000,
                batch_size=cell.batch_size,
                seed=0,
            )
            found = min(cell.batch_size, len(everything))
        if found < cell.batch_size:
            raise ConfigError(
                f"the catalogue fills a batch of {found}, not {cell.batch_size}: pass a larger "
                "one (--catalogue), or lower --batch"
            )
        return source
