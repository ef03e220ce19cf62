"""Evaluation on a catalogue: every system of a finished run, or the baselines without a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.attributes.lists import Lists, modalities
from afmrl_jax.data.attributes.text_format import format_attributes, read_attributes
from afmrl_jax.data.catalogue.readers import catalogue_folder
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.evaluation.baselines import baseline_inputs, bm25_inputs, known_inputs
from afmrl_jax.evaluation.evaluate import (
    Evaluated,
    EvaluationData,
    evaluate_subjects,
    query_and_gallery,
    write_evaluation,
)
from afmrl_jax.evaluation.external_embedders import OutsideEmbedder
from afmrl_jax.evaluation.per_query import QueryValues
from afmrl_jax.evaluation.tasks import RETRIEVAL, TASKS, PerQuery, Task, TaskInputs, evaluate_row
from afmrl_jax.inference.annotate import annotate_catalogue, read, select
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import subject_of, systems_of
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject, Modality


def _divided(
    name: str,
    split: str,
    *,
    skip_bad: bool,
    marketplace: MarketplaceSettings | None = None,
    columns: str | None = None,
) -> tuple[Catalogue, Catalogue]:
    """The evaluated listings, and those that a classifier is fitted on."""
    whole = read(name, "all", skip_bad=skip_bad, marketplace=marketplace, columns=columns)
    test = select(whole, split)
    # A classifier must not be evaluated on the data it was fitted on.
    overlap = split in ("train", "all")
    return test, Catalogue(whole.name, ()) if overlap else whole.subset("train")


def evaluate(
    run: FinishedRun,
    name: str,
    split: str,
    out: Path,
    *,
    skip_bad: bool = False,
    columns: str | None = None,
) -> JsonObject:
    """Evaluate every system of a run on a split of a catalogue, and write `out`.

    The run keeps the attributes that its generators write, by catalogue, and the metrics of single
    queries.
    """
    test, train = _divided(
        name, split, skip_bad=skip_bad, marketplace=run.config.marketplace, columns=columns
    )
    everything = Catalogue(test.name, (*train.listings, *test.listings))
    systems = systems_of(run.config)
    written = {
        generator: _written(run, generator, everything, test)
        for generator in sorted({s.generator for s in systems if s.generator})
    }
    folder = catalogue_folder(name, run.config.marketplace) if split == "test" else None
    data = EvaluationData(run.rows(test), run.rows(train), split, folder)
    subjects = (subject_of(s, run.encoder(s), written, data, run.config.seed) for s in systems)
    found = evaluate_subjects(subjects, data, run.config, test.name)
    write_evaluation(out, run.folder, found, provenance())
    return found.evaluation


def _written(run: FinishedRun, generator: str, everything: Catalogue, test: Catalogue) -> Lists:
    """A generator's lists of all listings, and of lone pictures and titles of the test listings."""
    texts = {
        shown: cached_annotations(run, generator, everything if shown == "both" else test, shown)
        for shown in modalities(run.config.lists)
    }
    return Lists(texts["both"], texts.get("image", {}), texts.get("text", {}))


def cached_annotations(
    run: FinishedRun, generator: str, catalogue: Catalogue, shown: Modality
) -> Mapping[str, str]:
    """A generator's lists of a catalogue, which the run keeps once they are written.

    Args:
        run: has the generator.
        generator: the stage that trained it.
        catalogue: the listings.
        shown: what of each listing the generator sees.
    """
    key = hashlib.sha256(catalogue.fingerprint.encode()).hexdigest()[:12]
    lone = "" if shown == "both" else f"-{shown}"
    path = run.evaluations / f"{key}-{generator}{lone}.jsonl"
    if path.is_file():
        return read_attributes(path)
    log_info(f"{generator} writes attributes for {len(catalogue.listings)} listings")
    return annotate_catalogue(run, generator, catalogue, path, shown=shown)


def _own_attributes(listings: Sequence[Listing]) -> dict[str, str] | None:
    """The catalogue's own attributes by listing id; None if it has none."""
    known = {
        x.listing_id: format_attributes(x.attributes.items()) for x in listings if x.attributes
    }
    return known or None


def evaluate_baselines(
    name: str,
    split: str,
    *,
    embedders: Sequence[Path] = (),
    attributes: Path | None = None,
    trust_code: bool = False,
    skip_bad: bool = False,
    columns: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluated:
    """Evaluate baselines, which need no run, on a split of a catalogue and the usual tasks.

    Args:
        name: of the catalogue.
        split: listings that are queries and gallery.
        embedders: folders of other models; see `OutsideEmbedder`.
        attributes: attribute texts for BM25, as `afmrl annotate` writes them; None for the
            catalogue's own.
        trust_code: run code from an embedder's folder.
        skip_bad: leave unusable records out.
        columns: which columns of a table are which.
        resamples: of the bootstrap.
        seed: of resampling and clustering.
    """
    # A folder that cannot be loaded should fail before the others have been evaluated.
    loaded = [OutsideEmbedder(x, trust_code=trust_code) for x in embedders]
    test, train = _divided(name, split, skip_bad=skip_bad, columns=columns)
    listings = test.listings
    sides = query_and_gallery([x.role for x in listings])
    rows: list[JsonObject] = []
    values: dict[str, PerQuery] = {}

    def judge(label: str, inputs: TaskInputs, tasks: Sequence[Task]) -> None:
        log_info(f"evaluating {label}")
        row, values[label] = evaluate_row(
            label, inputs, seed=seed, resamples=resamples, tasks=tasks
        )
        rows.append({task.name: None for task in TASKS} | row)

    for label, inputs in baseline_inputs(listings, sides):
        judge(label, inputs, RETRIEVAL)
    texts = _own_attributes(listings) if attributes is None else read_attributes(attributes)
    if texts is not None:
        inputs = bm25_inputs(listings, sides, texts)
        judge("BM25 over titles and attributes", inputs, RETRIEVAL)
    for embedder in loaded:
        known: dict[str, np.ndarray | None] = dict(embedder.views(listings))
        categories = [x.category for x in train.listings]
        if categories and all(categories):
            fitted = embedder.both(train.listings)
            known |= {"train": fitted, "train_categories": np.array(categories)}
        judge(embedder.name, known_inputs(listings, sides, known), TASKS)
    per_query = QueryValues.of(test.name, split, listings, values)
    return Evaluated({"catalogue": test.name, "rows": rows}, per_query, None)
