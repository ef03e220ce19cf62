"""Evaluating systems: embeddings, the contents of `evaluation.json`, the report's gallery."""

from __future__ import annotations

import base64
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from afmrl_jax.config import RunConfig
from afmrl_jax.data.attributes import format_attributes
from afmrl_jax.data.pipeline import RowBuilder
from afmrl_jax.errors import AfmrlError
from afmrl_jax.evaluation.baselines import run_baselines
from afmrl_jax.evaluation.tasks import PerQuery, TaskInputs, compare_rows, evaluate_row
from afmrl_jax.progress import say
from afmrl_jax.retrieval.encode import Encoder
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.scann_index import ScannIndex

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """A system to evaluate."""

    name: str
    encoder: Encoder
    test_texts: Texts | None = None
    """Attribute text by listing id, for queries and gallery; None where R reads none."""
    train_texts: Texts | None = None
    """The same of the train listings, on which the classifier is fitted."""


@dataclass(frozen=True)
class EvaluationData:
    """The test split, and the train split for classification."""

    test: RowBuilder
    train: RowBuilder

    def labels(self, builder: RowBuilder) -> np.ndarray | None:
        """Categories, or None where any listing lacks one."""
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


@dataclass(frozen=True)
class SingleViews:
    """The views that hold no attributes: the same for every system of one embedder."""

    embedder: str
    text: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, data: EvaluationData, encoder: Encoder, last: SingleViews | None) -> SingleViews:
        """Those of an embedder; `last` is returned where it is of the same one."""
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

    The text view holds the title alone and the image view the picture alone: attributes are read
    off both, and would carry one modality into the other.
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
        train=train,
        train_categories=train_categories,
    )


def evaluate_subjects(
    subjects: Iterable[Subject], data: EvaluationData, config: RunConfig, catalogue: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluate systems on the same listings.

    Args:
        subjects: in the order of the table; neighbours are compared.
        data: the listings.
        config: for the seed and the evaluation's settings.
        catalogue: its name.

    Returns:
        The contents of `evaluation.json`, and the vectors [n d] of the last system.
    """
    seed, resamples = config.seed, config.evaluation.bootstrap
    rows, values, last, single = [], [], None, None
    for x in subjects:
        say(f"evaluating {x.name}")
        single = SingleViews.of(data, x.encoder, single)
        inputs = embed_views(data, x.encoder, x.test_texts, x.train_texts, single)
        row, per_query = evaluate_row(x.name, inputs, seed=seed, resamples=resamples)
        rows.append(row)
        values.append(per_query)
        last = inputs.both
    if last is None:
        raise ValueError("nothing to evaluate")
    names = [row["name"] for row in rows]
    return (
        {
            "catalogue": catalogue,
            "rows": rows,
            "comparisons": _comparisons(names, values, data.families, seed, resamples),
            "baselines": run_baselines(data.test.listings),
            "scann": scann_agreement(last),
        },
        last,
    )


def peak_memory() -> float:
    """Largest resident size of this process so far, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def _comparisons(
    names: list[str],
    values: list[PerQuery],
    families: np.ndarray,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    pairs = [(i, i + 1) for i in range(len(names) - 1)]
    if "agcl+distilled" in names and names.index("agcl+distilled") > 1:
        pairs.append((0, names.index("agcl+distilled")))
    return [
        {
            "from": names[i],
            "to": names[j],
            "metrics": compare_rows(values[i], values[j], families, seed=seed, resamples=resamples),
        }
        for i, j in pairs
    ]


def scann_agreement(vectors: np.ndarray, k: int = 10) -> dict[str, Any]:
    """Share of the exact first k that ScaNN finds, every vector a query."""
    ids = [str(i) for i in range(len(vectors))]
    exact = ExactIndex(ids, vectors).search(vectors, k).positions
    try:
        found = ScannIndex(ids, vectors).search(vectors, k).positions
    except AfmrlError as error:
        return {"recall": None, "reason": str(error)}
    shared = [len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)]
    return {"k": k, "recall": round(100 * float(np.mean(shared)) / exact.shape[1], 2)}


def gallery(
    data: EvaluationData, vectors: np.ndarray, config: RunConfig, before: Texts, after: Texts
) -> list[dict[str, Any]]:
    """Queries with their attributes before and after RAR, and their first five, for the report."""
    listings, products = data.test.listings, data.products
    index = ExactIndex([x.listing_id for x in listings], vectors)
    count = min(config.evaluation.gallery_queries, len(listings))
    chosen = np.random.default_rng(config.seed).permutation(len(listings))[:count]
    found = index.search(vectors[chosen], 6)

    def card(place: int) -> dict[str, Any]:
        x = listings[place]
        picture = base64.b64encode(x.read_image_bytes()).decode()
        return {
            "listing_id": x.listing_id,
            "product_id": x.product_id,
            "title": x.title,
            "image": picture,
        }

    out = []
    for number, place in enumerate(chosen):
        query = listings[place]
        results = [
            card(int(p))
            | {
                "score": round(float(s), 4),
                "correct": bool(products[p] == products[place]),
            }
            for p, s in zip(found.positions[number], found.scores[number], strict=True)
            if p != place
        ]
        truth = format_attributes((query.attributes or {}).items())
        out.append(
            {
                "query": card(int(place)),
                "attributes_before": before.get(query.listing_id, ""),
                "attributes_after": after.get(query.listing_id, ""),
                "true_attributes": truth or None,
                "results": results[:5],
            }
        )
    return out
