"""Evaluating systems: embeddings and the contents of `evaluation.json`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import RunConfig
from afmrl_jax.data.catalogue.records import ROLES
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.evaluation.approximate import scann_effect
from afmrl_jax.evaluation.baselines import run_baselines, types_of
from afmrl_jax.evaluation.chance import CHANCE, chance_values
from afmrl_jax.evaluation.ideal import ideal_values
from afmrl_jax.evaluation.latency import latency
from afmrl_jax.evaluation.per_query import FOLDER, QueryValues, write_query_values
from afmrl_jax.evaluation.primary import primary_results
from afmrl_jax.evaluation.tasks import PerQuery, TaskInputs, compare_rows, evaluate_row, mean_values
from afmrl_jax.evaluation.truncation import truncation_curve
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.outputs import whole_record
from afmrl_jax.runtime.preemption import heed
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.types import JsonObject

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """A system to evaluate."""

    name: str
    encoder: Encoder
    test_texts: Texts | None = None
    """Attribute text by listing id, for queries and gallery; None if the embedder reads none."""
    train_texts: Texts | None = None
    """The same for the train listings, on which the classifier is fitted."""


class Evaluated(NamedTuple):
    """Result of an evaluation."""

    evaluation: JsonObject
    """The contents of `evaluation.json`."""
    per_query: QueryValues
    vectors: np.ndarray | None
    """[n d], of the last system; None if it has none."""
    subject: Subject | None = None
    """The last system."""


@dataclass(frozen=True)
class EvaluationData:
    """The test split, and the train split for classification."""

    test: RowBuilder
    train: RowBuilder
    split: str = "test"
    """Name of the evaluated split."""
    source: str | None = None
    """The catalogue's name or folder; `ideal.json` there says what a perfect model could reach."""
    size: int | None = None
    """Listings of the whole catalogue."""

    def labels(self, builder: RowBuilder) -> np.ndarray | None:
        """Categories, or None if any listing lacks one."""
        found = [x.category for x in builder.listings]
        return np.array(found) if all(found) else None

    @property
    def products(self) -> np.ndarray:
        """True product of each test listing."""
        return np.array([x.true_product for x in self.test.listings])

    @property
    def families(self) -> np.ndarray:
        """Family of each test listing."""
        return np.array([x.group for x in self.test.listings])

    @cached_property
    def sides(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Places of queries and of the gallery; see `query_and_gallery`."""
        return query_and_gallery([x.role for x in self.test.listings])


def query_and_gallery(
    roles: Sequence[str | None],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Places of queries and of the gallery, ascending; None twice if every listing is both.

    Args:
        roles: of each listing, `query`, `gallery`, or None for both.

    Raises:
        CatalogueError: one side is empty.
    """
    if not any(roles):
        return None, None
    # A listing that is only a query is not searched, and vice versa.
    found = [np.array([n for n, x in enumerate(roles) if x != other]) for other in reversed(ROLES)]
    if not all(map(len, found)):
        raise CatalogueError(
            "all evaluated listings have the same role; give some `role` gallery and some query, "
            "or omit `role` to search all with all"
        )
    return found[0], found[1]


@dataclass(frozen=True)
class SingleViews:
    """The views without attributes: the same for every system of one embedder."""

    embedder: str
    text: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, data: EvaluationData, encoder: Encoder, last: SingleViews | None) -> SingleViews:
        """The views of an embedder; returns `last` if it is of the same one."""
        if last is not None and last.embedder == encoder.identity:
            return last
        everything = np.arange(len(data.test.listings))
        text = encoder.embed(data.test, everything, picture=False)
        return cls(encoder.identity, text, encoder.embed(data.test, everything, title=False))


def embed_views(
    data: EvaluationData,
    encoder: Encoder,
    attributes: Texts | None,
    train_texts: Texts | None,
    single: SingleViews,
) -> TaskInputs:
    """The three views of the test listings under one system.

    The text view holds only the title and the image view only the picture: attributes are read off
    both, and would carry one modality into the other.
    """
    everything = np.arange(len(data.test.listings))
    categories, train_categories = data.labels(data.test), data.labels(data.train)
    train = None
    if categories is not None and train_categories is not None and len(train_categories):
        train = encoder.embed(data.train, np.arange(len(data.train.listings)), train_texts)
    return TaskInputs(
        both=encoder.embed(data.test, everything, attributes),
        text=single.text,
        image=single.image,
        products=data.products,
        families=data.families,
        categories=categories,
        types=types_of(data.test.listings),
        train=train,
        train_categories=train_categories,
        queries=data.sides[0],
        gallery=data.sides[1],
    )


def evaluate_subjects(
    subjects: Iterable[Subject], data: EvaluationData, config: RunConfig, catalogue: str
) -> Evaluated:
    """Evaluate systems on the same listings.

    Args:
        subjects: in the order of the table; neighbours are compared.
        data: the listings.
        config: for the seed and the evaluation's settings.
        catalogue: its name.
    """
    settings, seed = config.evaluation, config.seed
    rows: list[JsonObject] = []
    values: dict[str, PerQuery] = {}
    last, single = None, None
    for x in subjects:
        heed()
        log_info(f"evaluating {x.name}")
        single = SingleViews.of(data, x.encoder, single)
        inputs = embed_views(data, x.encoder, x.test_texts, x.train_texts, single)
        row, values[x.name] = evaluate_row(x.name, inputs, seed=seed, resamples=settings.bootstrap)
        rows.append(row | {"truncation": truncation_curve(inputs)})
        last = x, inputs
    if last is None:
        raise ValueError("nothing to evaluate")
    (subject, inputs), listings = last, data.test.listings
    assert inputs.both is not None
    everything = {CHANCE: chance_values(inputs)} | values
    evaluation = {
        "catalogue": catalogue,
        "listings": data.size,
        "rows": rows,
        "chance": mean_values(everything[CHANCE]),
        "ideal": ideal_values(data.source, len(listings)),
        "primary": primary_results(
            everything, data.families, resamples=settings.bootstrap, seed=seed
        ),
        "comparisons": _comparisons(values, data.families, seed, settings.bootstrap),
        "baselines": run_baselines(listings, data.sides),
        "scann": scann_effect(inputs, seed=seed),
    }
    if settings.latency:
        log_info("measuring latency")
        evaluation["latency"] = {"system": subject.name} | latency(
            subject.encoder, data.test, subject.test_texts, inputs.both
        )
    per_query = QueryValues.of(catalogue, data.split, listings, everything)
    return Evaluated(evaluation, per_query, inputs.both, subject)


def write_evaluation(
    out: Path, folder: Path | None, found: Evaluated, more: JsonObject | None = None
) -> None:
    """Write `evaluation.json`, and the per-query values, whose path it contains.

    Args:
        out: the JSON file.
        folder: the values go to its `evaluations` folder; None keeps none.
        found: what to write.
        more: further entries of the JSON.
    """
    way: dict[str, str] = {}
    if folder is not None:
        kept = write_query_values(folder / FOLDER, found.per_query)
        way["per_query"] = Path(os.path.relpath(kept.absolute(), out.absolute().parent)).as_posix()
    write_json(out, found.evaluation | way | (more or {}))


def is_evaluation(path: Path) -> bool:
    """Whether a file is what `afmrl evaluate` writes; a run's own has its cost too."""
    found = whole_record(path)
    return {"catalogue", "rows", "comparisons"} <= found.keys() and "peak_memory_gb" not in found


def write_results(
    run: Path, stage: Path, found: Evaluated, cards: list[JsonObject], seconds: dict[str, float]
) -> None:
    """Write what the evaluation of a run leaves: `evaluation.json`, `gallery.json`, provenance.

    Args:
        run: the run directory.
        stage: the stage's folder, for what is not hashed: where the results come from.
        found: what to write.
        cards: of the gallery.
        seconds: that each stage took.
    """
    write_json(stage / "provenance.json", provenance())
    write_json(run / "gallery.json", cards)
    cost = {"seconds": seconds, "peak_memory_gb": peak_memory()}
    write_evaluation(run / "evaluation.json", run, found, cost)


def peak_memory() -> float:
    """Largest resident size of this process so far, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def _comparisons(
    values: Mapping[str, PerQuery], families: np.ndarray, seed: int, resamples: int
) -> list[JsonObject]:
    names = list(values)
    pairs = [(i, i + 1) for i in range(len(names) - 1)]
    if "agcl+distilled" in names and names.index("agcl+distilled") > 1:
        pairs.append((0, names.index("agcl+distilled")))
    out = []
    for i, j in pairs:
        before, after = values[names[i]], values[names[j]]
        metrics = compare_rows(before, after, families, seed=seed, resamples=resamples)
        out.append({"from": names[i], "to": names[j], "metrics": metrics})
    return out
