"""Evaluating systems: embeddings and the contents of `evaluation.json`."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afmrl_jax.config import RunConfig
from afmrl_jax.data.attributes.lists import Lists
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
    test_lists: Lists | None = None
    """For queries and gallery; None if the embedder reads none."""
    train_lists: Lists | None = None
    """The same for the train listings, on which the classifier is fitted."""
    control_of: str | None = None
    """For a control, the name of the subject it is compared with."""


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
    folder: Path | None = None
    """The catalogue's own; `ideal.json` in it says what a perfect model could reach."""
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
    """The views of a lone title and a lone picture, each with the list written from it alone, if
    any: the same for every system of one embedder that reads the same lists there.
    """

    key: tuple[str, Texts, Texts]
    """Identity of the embedder, and the lists it reads."""
    text: np.ndarray
    image: np.ndarray

    @classmethod
    def of(
        cls, data: EvaluationData, encoder: Encoder, lists: Lists, last: SingleViews | None
    ) -> SingleViews:
        """The views under an embedder; returns `last` if it is the same."""
        key = encoder.identity, lists.text, lists.image
        if last is not None and last.key == key:
            return last
        everything = np.arange(len(data.test.listings))
        text = encoder.embed(data.test, everything, lists.text, picture=False)
        image = encoder.embed(data.test, everything, lists.image, title=False)
        return cls(key, text, image)


def embed_views(
    data: EvaluationData,
    encoder: Encoder,
    attributes: Texts | None,
    train_texts: Texts | None,
    single: SingleViews,
) -> TaskInputs:
    """The three views of the test listings under one system.

    The text view holds only the title and the image view only the picture. A list that was written
    from both would carry one modality into the other, so these views have at most a list that was
    written from the title, or from the picture, alone.
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
        subjects: in the order of the table; neighbours are compared, and controls with the row
            they belong to. The last is none.
        data: the listings.
        config: for the seed and the evaluation's settings.
        catalogue: its name.
    """
    settings, seed = config.evaluation, config.seed
    rows: list[JsonObject] = []
    values: dict[str, PerQuery] = {}
    controls: dict[str, str] = {}
    last, single = None, None
    for x in subjects:
        heed()
        log_info(f"evaluating {x.name}")
        test, train = (None if y is None else y.both for y in (x.test_lists, x.train_lists))
        single = SingleViews.of(data, x.encoder, x.test_lists or Lists({}), single)
        inputs = embed_views(data, x.encoder, test, train, single)
        row, values[x.name] = evaluate_row(x.name, inputs, seed=seed, resamples=settings.bootstrap)
        rows.append(row | {"truncation": truncation_curve(inputs)})
        if x.control_of is not None:
            controls[x.name] = x.control_of
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
        "ideal": ideal_values(data.folder, len(listings)),
        "primary": primary_results(
            everything, data.families, resamples=settings.bootstrap, seed=seed
        ),
        "comparisons": _comparisons(values, controls, data.families, seed, settings.bootstrap),
        "baselines": run_baselines(listings, data.sides),
        "scann": scann_effect(inputs, seed=seed),
    }
    if settings.latency:
        log_info("measuring latency")
        evaluation["latency"] = {"system": subject.name} | latency(
            subject.encoder,
            data.test,
            None if subject.test_lists is None else subject.test_lists.both,
            inputs.both,
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
    values: Mapping[str, PerQuery],
    controls: Mapping[str, str],
    families: np.ndarray,
    seed: int,
    resamples: int,
) -> list[JsonObject]:
    names = [x for x in values if x not in controls]
    pairs = list(itertools.pairwise(names))
    if "agcl+distilled" in names[2:]:
        pairs.append((names[0], "agcl+distilled"))
    pairs += controls.items()
    out = []
    for one, other in pairs:
        metrics = compare_rows(values[one], values[other], families, seed=seed, resamples=resamples)
        out.append({"from": one, "to": other, "metrics": metrics})
    return out
