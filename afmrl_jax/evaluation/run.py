"""Evaluating a run: embeddings of every system, `evaluation.json` and the report's gallery."""

from __future__ import annotations

import base64
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.config import RunConfig
from afmrl_jax.data.catalogue import Catalogue
from afmrl_jax.data.pipeline import RowBuilder
from afmrl_jax.data.text import BpeTokenizer
from afmrl_jax.errors import AfmrlError
from afmrl_jax.evaluation.baselines import run_baselines
from afmrl_jax.evaluation.tasks import PerQuery, TaskInputs, compare_rows, evaluate_row
from afmrl_jax.files import write_json
from afmrl_jax.models.folder import load_model
from afmrl_jax.retrieval.encode import Encoder
from afmrl_jax.retrieval.exact import ExactIndex
from afmrl_jax.retrieval.scann_index import ScannIndex
from afmrl_jax.training.annotate import read_attributes

SystemSpec = tuple[str, str, str | None]
"""(row name, stage of the embedder, stage of the test attributes or None)"""


@dataclass(frozen=True)
class TestSet:
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
        return np.array([x.duplicate_of or x.product_id for x in self.test.listings])

    @property
    def families(self) -> np.ndarray:
        """Family of each test listing."""
        return np.array([x.group for x in self.test.listings])


def embed_views(
    data: TestSet, encoder: Encoder, attributes: dict[str, str] | None, train_texts: Any
) -> TaskInputs:
    """The three views of the test listings under one system.

    The text view holds the title alone and the image view the picture alone: attributes are read
    off both, and would carry one modality into the other.
    """
    everything = np.arange(len(data.test.listings))
    categories, train_categories = data.labels(data.test), data.labels(data.train)
    train = None
    if categories is not None and train_categories is not None:
        train = encoder.embed(data.train, np.arange(len(data.train.listings)), train_texts)
    return TaskInputs(
        both=encoder.embed(data.test, everything, attributes),
        text=encoder.embed(data.test, everything, picture=False),
        image=encoder.embed(data.test, everything, title=False),
        products=data.products,
        families=data.families,
        categories=categories,
        train=train,
        train_categories=train_categories,
    )


def evaluate_run(
    folder: Path,
    config: RunConfig,
    catalogue: Catalogue,
    tokenizer: BpeTokenizer,
    systems: Sequence[SystemSpec],
    *,
    seconds: dict[str, float],
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate every system on the test split and write `evaluation.json` and `gallery.json`.

    Args:
        folder: the run directory.
        config: of the run.
        catalogue: whose test split is used.
        tokenizer: of the run.
        systems: rows of the table, in order; neighbours are compared.
        seconds: of each stage, for the report.
        out: where to write the evaluation; by default into the run, with the gallery.
    """

    def rows_of(split: str) -> RowBuilder:
        listings = catalogue.subset(split).listings
        return RowBuilder.of(listings, tokenizer, config.image, config.text)

    data = TestSet(rows_of("test"), rows_of("train"))
    if not len(data.test.listings):
        raise AfmrlError(f"catalogue {catalogue.name} has no test split; add one")
    seed, resamples = config.seed, config.evaluation.bootstrap
    rows, values, last = [], [], None
    for name, stage, annotated in systems:
        encoder = Encoder(*load_model(folder / stage / "model"), config.evaluation.batch_size)
        texts = _texts(folder, annotated)
        train_texts = _texts(folder, "annotate-distilled") if annotated else None
        inputs = embed_views(data, encoder, texts, train_texts)
        row, per_query = evaluate_row(name, inputs, seed=seed, resamples=resamples)
        rows.append(row)
        values.append(per_query)
        last = (inputs, encoder)
    assert last is not None
    evaluation = {
        "catalogue": catalogue.name,
        "rows": rows,
        "comparisons": _comparisons(systems, values, data.families, seed, resamples),
        "baselines": run_baselines(Catalogue("test", tuple(data.test.listings))),
        "scann": scann_agreement(last[0].both),
        "seconds": seconds,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    if out is not None:
        write_json(out, evaluation)
        return evaluation
    write_json(folder / "gallery.json", _gallery(folder, config, data, last[0], last[1]))
    write_json(folder / "evaluation.json", evaluation)
    return evaluation


def _texts(folder: Path, stage: str | None) -> dict[str, str] | None:
    return read_attributes(folder / stage / "attributes.jsonl") if stage else None


def _comparisons(
    systems: Sequence[SystemSpec],
    values: list[PerQuery],
    families: np.ndarray,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    names = [name for name, _, _ in systems]
    pairs = [(i, i + 1) for i in range(len(names) - 1)]
    if "agcl+distilled" in names and names.index("agcl+distilled") > 1:
        pairs.append((0, names.index("agcl+distilled")))
    return [
        {
            "from": names[i],
            "to": names[j],
            "metrics": compare_rows(
                values[i], values[j], families, seed=seed, resamples=resamples
            ),
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


def _gallery(
    folder: Path, config: RunConfig, data: TestSet, inputs: TaskInputs, encoder: Encoder
) -> list[dict[str, Any]]:
    """Queries with their attributes before and after RAR, and their first five."""
    listings = data.test.listings
    ids = [x.listing_id for x in listings]
    index = ExactIndex(ids, inputs.both, encoder.identity)
    count = min(config.evaluation.gallery_queries, len(listings))
    chosen = np.random.default_rng(config.seed).permutation(len(listings))[:count]
    before = _texts(folder, "annotate-distilled") or {}
    after = _texts(folder, "annotate-reinforced") or {}
    found = index.search(inputs.both[chosen], 6)

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
                "correct": bool(data.products[p] == data.products[place]),
            }
            for p, s in zip(found.positions[number], found.scores[number], strict=True)
            if p != place
        ]
        truth = "; ".join(f"{k}: {v}" for k, v in (query.attributes or {}).items())
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
