"""How many text places of a run's batches are padding, stage by stage, counted on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from afmrl_jax.config import AgclConfig, RunConfig
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.attributes.oracle import taught_texts
from afmrl_jax.data.batching.collate import Row, bucket_length
from afmrl_jax.data.batching.shapes import ShapeCounter, padding_counts
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.training.agcl import contrastive_source
from afmrl_jax.types import JsonObject


@dataclass(frozen=True)
class _Stages:
    """Batches of a run without a model: where a generator would have written, the oracle has."""

    config: RunConfig

    @cached_property
    def catalogue(self) -> Catalogue:
        return load_catalogue(self.config.catalogue)

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

    def contrastive(self, settings: AgclConfig, *, reads: bool) -> ContrastiveSource:
        config, read = self.config, Lists(self.lists) if reads else None
        return contrastive_source(
            self.train, settings, config.seed, read=read, packed=config.packed
        )

    def padded(self) -> dict[str, list[list[Row]]]:
        """Rows that have one length in each list, by the stages that read them."""
        config = self.config
        queries = self.rows(self.catalogue.subset("reward"))
        prompts = [queries.prompt(n) for n in range(len(queries.listings))]
        told = [self.train.prompt(n) for n in range(len(self.train.listings))]
        test = self.rows(self.catalogue.subset("test"))
        known = [self.lists[x.listing_id] for x in test.listings]
        read = sorted(
            (test.embedder(n, x) for n, x in enumerate(known)), key=lambda row: len(row.tokens)
        )
        size = config.evaluation.batch_size
        return {
            "rar": [prompts],
            "annotate": [told],
            "evaluate": [read[begin : begin + size] for begin in range(0, len(read), size)],
        }


def padding_by_stage(config: RunConfig, batches: int) -> tuple[dict[str, float], list[JsonObject]]:
    """`padding_demo_max`, the largest share of text places among the stages that is padding.

    Args:
        config: of the run.
        batches: of each training stage; prompts and what is embedded are counted whole.
    """
    stages, details = _Stages(config), []
    sources: dict[str, DistillSource | ContrastiveSource] = {
        "distill": stages.distill(),
        "backbone": stages.contrastive(config.backbone.settings(config.agcl), reads=True),
        "infonce": stages.contrastive(config.agcl.infonce(), reads=False),
        "agcl-distilled": stages.contrastive(config.agcl, reads=True),
    }
    for stage, source in sources.items():
        shapes, counts = ShapeCounter(), []
        for step in range(batches):
            batch = source[step].rows
            shapes.add(batch)
            counts.append(padding_counts(batch)["text"])
        details.append(_told(stage, counts, len(shapes)))
    for stage, groups in stages.padded().items():
        longest = [max(len(row.tokens) for row in rows) for rows in groups]
        lengths = [bucket_length(n, config.text) for n in longest]
        counts = [
            (n * len(rows) - sum(len(row.tokens) for row in rows), n * len(rows))
            for n, rows in zip(lengths, groups, strict=True)
        ]
        details.append(_told(stage, counts, len(set(lengths))))
    return {"padding_demo_max": max(x["padding"] for x in details)}, details


def _told(stage: str, counts: Sequence[tuple[int, int]], shapes: int) -> JsonObject:
    padded, places = np.sum(counts, axis=0).tolist()
    share = round(padded / places, 4)
    log_info(f"{stage}: {100 * share:.1f} % of text places are padding, {shapes} shapes")
    return {"part": "padding", "stage": stage, "padding": share, "shapes": shapes}
