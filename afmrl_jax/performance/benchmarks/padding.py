"""How many text places of a run's batches are padding, stage by stage, counted on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from afmrl_jax.config import AgclConfig, RunConfig
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.oracle import taught_texts
from afmrl_jax.data.attributes.shuffled import shuffled_lists
from afmrl_jax.data.batching.shapes import AnyRows, ShapeCounter, padding_counts
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.load import load_catalogue_of
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.embedder_batches import packed_batches, sorted_batches
from afmrl_jax.data.sources.prompts import PromptCollator
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.agcl import contrastive_source
from afmrl_jax.training.annotate import BATCH
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class _Stages:
    """Batches of a run without a model: where a generator would have written, the oracle has."""

    config: RunConfig

    @cached_property
    def catalogue(self) -> Catalogue:
        return load_catalogue_of(self.config)

    @cached_property
    def taught(self) -> tuple[Catalogue, list[str]]:
        return taught_texts(self.catalogue, self.config.oracle, self.config.seed)

    @cached_property
    def tokenizer(self) -> BpeTokenizer:
        titles = [x.title for x in self.catalogue.subset("distill", "train").listings]
        return BpeTokenizer.train(titles + self.taught[1], self.config.vocab_size)

    def rows(self, part: Catalogue) -> RowBuilder:
        return RowBuilder.of(part.listings, self.tokenizer, self.config.image, self.config.text)

    @cached_property
    def train(self) -> RowBuilder:
        return self.rows(self.catalogue.subset("train"))

    @cached_property
    def lists(self) -> dict[str, str]:
        texts = self.taught[1]
        listings = self.catalogue.listings
        return {x.listing_id: texts[n % len(texts)] for n, x in enumerate(listings)}

    def distill(self) -> DistillSource:
        config = self.config
        return DistillSource(
            self.rows(self.taught[0]),
            self.taught[1],
            steps=config.distill.steps,
            batch_size=config.distill.batch_size,
            seed=config.seed,
            swap_share=config.distill.swap_share,
            packed=config.packed,
        )

    def contrastive(
        self, settings: AgclConfig, *, reads: bool, shuffled: bool = False
    ) -> ContrastiveSource:
        config, read = self.config, Lists(self.lists) if reads else None
        if shuffled and read is not None:
            read = shuffled_lists(read, self.train.listings, config.seed)
        return contrastive_source(
            self.train, settings, config.seed, read=read, packed=config.packed
        )

    def prompts(self, batches: int) -> dict[str, Iterator[AnyRows]]:
        """Batches of prompts by the stages that read them."""
        config, queries = self.config, self.rows(self.catalogue.subset("reward"))
        return {
            "rar": self._collated(queries, config.rar.queries, batches),
            "annotate": self._collated(self.train, BATCH, batches),
        }

    def _collated(self, builder: RowBuilder, size: int, batches: int) -> Iterator[AnyRows]:
        rows = [builder.prompt(n) for n in range(len(builder.listings))]
        order = np.random.default_rng(self.config.seed).permutation(len(rows))
        rows = [rows[n] for n in order]
        lengths = [len(row.tokens) for row in rows]
        collate = PromptCollator.of(builder, lengths, size, packed=self.config.packed)
        begins = range(0, max(1, len(rows) - size + 1), size)[:batches]
        return (collate(rows[begin : begin + size]) for begin in begins)

    def embedded(self) -> Iterator[AnyRows]:
        """What the evaluation embeds with pictures, titles and lists."""
        test = self.rows(self.catalogue.subset("test"))
        rows = [test.embedder(n, self.lists[x.listing_id]) for n, x in enumerate(test.listings)]
        make = packed_batches if self.config.packed else sorted_batches
        return (batch for batch, _ in make(test, rows, self.config.evaluation.batch_size))


def padding_by_stage(config: RunConfig, batches: int) -> tuple[dict[str, float], list[JsonObject]]:
    """`padding_demo_max`, the largest share of text places among the stages that is padding.

    Args:
        config: of the run.
        batches: of each stage, at most; what is embedded is counted whole.
    """
    stages, details = _Stages(config), []
    sources: dict[str, DistillSource | ContrastiveSource] = {"distill": stages.distill()}
    if config.backbone.steps:
        backbone = config.backbone.settings(config.agcl)
        sources["backbone"] = stages.contrastive(backbone, reads=True)
    sources["infonce"] = stages.contrastive(config.agcl.infonce(), reads=False)
    sources["agcl-distilled"] = stages.contrastive(config.agcl, reads=True)
    if config.controls:
        sources["agcl-shuffled"] = stages.contrastive(config.agcl, reads=True, shuffled=True)
    made = {stage: _rows(source, batches) for stage, source in sources.items()}
    made |= {**stages.prompts(batches), "evaluate": stages.embedded()}
    for stage, found in made.items():
        shapes, counts = ShapeCounter(), []
        for rows in found:
            shapes.add(rows)
            counts.append(padding_counts(rows)["text"])
        details.append(_told(stage, counts, len(shapes)))
    return {"padding_demo_max": max(x["padding"] for x in details)}, details


def _rows(source: DistillSource | ContrastiveSource, batches: int) -> Iterator[AnyRows]:
    return (source[step].rows for step in range(batches))


def _told(stage: str, counts: Sequence[tuple[int, int]], shapes: int) -> JsonObject:
    padded, places = np.sum(counts, axis=0).tolist()
    share = round(padded / places, 4)
    log_info(f"{stage}: {100 * share:.1f} % of text places are padding, {shapes} shapes")
    return {"part": "padding", "stage": stage, "padding": share, "shapes": shapes}
