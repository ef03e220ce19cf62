"""`afmrl audit-negatives`: what weights and masks do to the training batches of a finished run."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.config import AgclConfig
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching.collate import VLBatch
from afmrl_jax.data.catalogue.load import load_catalogue_of
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.mined_negatives import MinedTables
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.evaluation.pair_audit import Masking, Pairs, examples, summarise
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import DISTILL, TEXTS, annotations_of, generator_of
from afmrl_jax.objectives.bm25 import Bm25Statistics, bm25_scores
from afmrl_jax.reporting.audit import PAGE_TITLE, write_page
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.outputs import is_marked, require_own_output, whole_record
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.training.agcl import MINED, contrastive_source, term_statistics
from afmrl_jax.training.cit import cit_seed, cit_settings, cycle_attributes
from afmrl_jax.types import JsonObject

LARGEST = 1024
"""Most pairs per batch by default: all pairs are scored, and a person looks at only some."""


@dataclass(frozen=True)
class Overrides:
    """Settings to audit instead of the stage's own; None keeps those, `off` turns one off."""

    gamma: float | None = None
    delta: float | str | None = None
    agreement_rho: float | str | None = None
    agreement_epsilon: float | None = None

    def on(self, masking: Masking) -> Masking:
        """The settings with these overrides."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        changed: dict[str, Any] = {n: None if x == "off" else x for n, x in given.items()}
        return dataclasses.replace(masking, **changed)


@dataclass(frozen=True)
class Stage:
    """A stage that trained the embedder: its settings and texts."""

    name: str
    settings: AgclConfig
    lists: Lists | None
    """Of the listings; BM25 takes those from picture and title. None if the generator has written
    none."""
    reads: bool
    """Whether the embedder reads the texts."""
    seed: int
    """Of its batches."""

    @classmethod
    def of(cls, run: FinishedRun, name: str, train_ids: list[str]) -> Stage:
        """A stage of a run.

        Raises:
            RunError: no stage of that name trains the embedder.
        """
        config = run.config
        stages = {
            "infonce": (config.agcl.infonce(), False),
            "agcl": (config.agcl, False),
            "agcl-distilled": (config.agcl, True),
        }
        if config.backbone.steps:
            stages["backbone"] = (config.backbone.settings(config.agcl), True)
        for cycle in range(1, config.cit.cycles + 1):
            stages[f"cit-{cycle}"] = (cit_settings(config), True)
        if name not in stages:
            raise RunError(
                f"no stage {name!r} trains the embedder in {run.folder}; use one of "
                f"{', '.join(stages)}"
            )
        lists, seed = _lists(run, DISTILL), config.seed
        if name.startswith("cit-") and lists is not None:
            cycle = int(name.removeprefix("cit-"))
            seed = cit_seed(config, cycle)
            newer = _lists(run, generator_of(config, cycle)) or Lists({})
            lists = cycle_attributes(config, cycle, train_ids, lists, newer)
        return cls(name, stages[name][0], lists, stages[name][1], seed)


def _lists(run: FinishedRun, generator: str) -> Lists | None:
    folder = run.folder / annotations_of(generator)
    return Lists.read(folder, run.config.lists) if (folder / TEXTS).is_file() else None


def audit(
    run: FinishedRun,
    out: Path,
    *,
    stage: str = "agcl-distilled",
    batches: int = 4,
    batch_size: int | None = None,
    shown: int = 12,
    overrides: Overrides | None = None,
) -> JsonObject:
    """Write the page `out`, and the same as JSON next to it.

    Args:
        run: a run whose stage is finished.
        out: the page, `.html`.
        stage: one that trained the embedder.
        batches: how many of its training batches, spread over its steps.
        batch_size: pairs per batch; None for the stage's own, at most `LARGEST`.
        shown: pairs per list.
        overrides: settings to audit instead of the stage's own.

    Returns:
        The content of the JSON file.

    Raises:
        AfmrlError: an argument is invalid, or the stage cannot be read.
    """
    if out.suffix != ".html":
        raise AfmrlError(f"--out {out} is a page; give it a name that ends in .html")
    if batches < 1 or shown < 1:
        raise AfmrlError("--batches and --shown must be at least 1")
    _require_own(out)
    catalogue = load_catalogue_of(run.config).subset("train")
    listings = catalogue.listings
    own = Stage.of(run, stage, [x.listing_id for x in listings])
    _require_auditable(stage, own.settings)
    size = batch_size or min(own.settings.batch_size, LARGEST)
    settings = dataclasses.replace(own.settings, batch_size=size)
    own = dataclasses.replace(own, settings=settings)
    masking = (overrides or Overrides()).on(Masking.of(settings))
    encoder = Encoder.on(run.mesh, *run.model(stage))
    source, statistics = _source(run, own, run.rows(catalogue))
    pairs = _pairs(encoder, source, statistics, masking, batches, listings)
    found = {
        "run": run.folder.resolve().name,
        "stage": stage,
        "catalogue": catalogue.name,
        "batches": len(np.unique(pairs.batch)),
        "batch_size": source.batch_size,
        "hard_negatives": settings.mining.hard_negatives,
        "attributes_known": statistics is not None,
        "duplicates_known": any(x.duplicate_of or x.duplicate_group for x in listings),
        "settings": dataclasses.asdict(masking),
        "trained_with": dataclasses.asdict(Masking.of(settings)),
        **summarise(pairs, masking),
        "examples": examples(pairs, masking, source.identity, shown),
    }
    numbers = {x[side] for part in found["examples"].values() for x in part for side in SIDES}
    texts = None if own.lists is None else own.lists.both
    found["listings"] = {str(n): _card(listings[n], texts) for n in sorted(numbers)}
    pictures = {n: base64.b64encode(listings[n].read_image_bytes()).decode() for n in numbers}
    write_page(found, pictures, out)
    write_json(out.with_suffix(".json"), found | provenance())
    return found


NOT_AUDITED = (
    "teacher_share",
    "oracle_mask",
    "positive_weight",
    "weighted_pairs",
    "normalize_weights",
    "permute_weights",
)
"""Settings of weights and masks that the page says nothing of."""


def _require_auditable(stage: str, settings: AgclConfig) -> None:
    plain = settings.infonce()
    used = [x for x in NOT_AUDITED if getattr(settings, x) != getattr(plain, x)]
    if used:
        raise AfmrlError(
            f"{stage} was trained with {', '.join(f'agcl.{x}' for x in used)}, and the audit knows "
            "only gamma, delta and agreement: its figures would be those of another loss. Audit a "
            "stage without them"
        )


def _require_own(out: Path) -> None:
    command = "afmrl audit-negatives"
    require_own_output(out, command, file=lambda x: is_marked(x, PAGE_TITLE))
    figures = {"run", "stage", "masked", "examples"}
    require_own_output(
        out.with_suffix(".json"), command, file=lambda x: figures <= whole_record(x).keys()
    )


SIDES = ("query", "candidate")


def _source(
    run: FinishedRun, stage: Stage, builder: RowBuilder
) -> tuple[ContrastiveSource, Bm25Statistics | None]:
    """The batches that the stage was trained on, with terms if there are texts."""
    vocabulary, statistics, texts = None, None, None
    if stage.lists is not None:
        texts = stage.lists.both
        vocabulary, statistics = term_statistics(builder, texts)
    mining = stage.settings.mining
    tables = MinedTables(run.folder / stage.name / MINED, mining.every, mining.hard_negatives)
    return contrastive_source(
        builder,
        stage.settings,
        stage.seed,
        attributes=texts,
        read=stage.lists if stage.reads else None,
        vocabulary=vocabulary,
        mined=tables if mining.hard_negatives else None,
    ), statistics


def _pairs(
    encoder: Encoder,
    source: ContrastiveSource,
    statistics: Bm25Statistics | None,
    masking: Masking,
    batches: int,
    listings: Sequence[Listing],
) -> Pairs:
    """All pairs of some batches, spread over the steps."""
    steps = np.unique(np.linspace(0, len(source) - 1, batches).astype(int))
    truth = np.array([x.true_product for x in listings])
    parts = []
    with Progress("audit", len(steps)) as progress:
        for number, step in enumerate(steps):
            batch = source[int(step)]
            queries, candidates = source.draw(int(step))
            assert isinstance(batch.rows, VLBatch)
            vectors = np.asarray(encoder.vectors(batch.rows))
            scores = vectors[: len(queries)] @ vectors[len(queries) :].T
            bm25 = np.zeros_like(scores)
            if statistics is not None:
                queried, offered = batch.query_terms, batch.candidate_terms
                assert queried is not None
                assert offered is not None
                bm25 = np.asarray(bm25_scores(statistics, queried, offered))
            sides = (int(step), queries, candidates)
            parts.append(Pairs.of(*sides, scores, bm25, source.identity, truth, masking))
            progress.update(number + 1)
    return Pairs.join(parts)


def _card(listing: Listing, texts: Mapping[str, str] | None) -> JsonObject:
    """What the page shows about a listing."""
    return {
        "listing_id": listing.listing_id,
        "product_id": listing.product_id,
        "true_product": listing.true_product,
        "family_id": listing.family_id,
        "category": listing.category,
        "title": listing.title,
        "attributes": (texts or {}).get(listing.listing_id, ""),
    }
