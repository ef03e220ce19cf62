"""Using a finished run on a catalogue: read it, annotate it, evaluate the run on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.data.attributes import read_attributes
from afmrl_jax.data.catalogue import load_catalogue, say_skipped
from afmrl_jax.data.records import Catalogue
from afmrl_jax.errors import CatalogueError
from afmrl_jax.evaluation.run import EvaluationData, Subject, evaluate_subjects
from afmrl_jax.files import write_json
from afmrl_jax.progress import say
from afmrl_jax.systems import FinishedRun, systems_of
from afmrl_jax.training.annotate import annotate


def read(name: str, split: str, *, skip_bad: bool = False) -> Catalogue:
    """The listings of a split, or of `all`; records that were left out are named."""
    catalogue = load_catalogue(name, skip_bad=skip_bad)
    say_skipped(catalogue)
    return _select(catalogue, split)


def _select(catalogue: Catalogue, split: str) -> Catalogue:
    chosen = catalogue if split == "all" else catalogue.subset(split)
    if not chosen.listings:
        raise CatalogueError(
            f"catalogue {catalogue.name} has no listing in split {split!r}; choose another"
        )
    return chosen


def annotate_catalogue(
    run: FinishedRun, generator: str, catalogue: Catalogue, out: Path
) -> dict[str, str]:
    """Attributes by listing id, written to `out`; a killed call goes on where it stopped."""
    architecture, params = run.model(generator)
    everything = np.arange(len(catalogue.listings))
    return annotate(
        architecture, params, run.rows(catalogue), everything, out, mesh=run.mesh, label="annotate"
    )


def evaluate(
    run: FinishedRun, name: str, split: str, out: Path, *, skip_bad: bool = False
) -> dict[str, Any]:
    """Evaluate every system of a run on a split of a catalogue, and write `out`.

    What the generators write is kept in the run, by the listings they wrote for.
    """
    whole = read(name, "all", skip_bad=skip_bad)
    test = _select(whole, split)
    # A classifier must not be judged on what it was fitted on.
    overlap = split in ("train", "all")
    train = Catalogue(whole.name, ()) if overlap else whole.subset("train")
    everything = Catalogue(whole.name, (*train.listings, *test.listings))
    texts: dict[str | None, Mapping[str, str] | None] = {None: None}
    systems = systems_of(run.config)
    for generator in sorted({s.generator for s in systems if s.generator}):
        texts[generator] = _cached_annotations(run, generator, everything)
    subjects = (
        Subject(s.name, run.encoder(s), texts[s.generator], texts[s.generator]) for s in systems
    )
    data = EvaluationData(run.rows(test), run.rows(train))
    evaluation, _ = evaluate_subjects(subjects, data, run.config, whole.name)
    write_json(out, evaluation)
    return evaluation


def _cached_annotations(
    run: FinishedRun, generator: str, catalogue: Catalogue
) -> Mapping[str, str]:
    key = hashlib.sha256(catalogue.fingerprint.encode()).hexdigest()[:12]
    path = run.folder / "evaluations" / f"{key}-{generator}.jsonl"
    if path.is_file():
        return read_attributes(path)
    say(f"{generator} writes attributes for {len(catalogue.listings)} listings")
    return annotate_catalogue(run, generator, catalogue, path)
