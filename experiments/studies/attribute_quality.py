"""How accurate a run's generators are, and what lists are worth, on which side.

    python -m experiments.studies.attribute_quality --run runs/demo

Writes experiments/results/attribute_quality.json. For each generator: the share of correct values
by key, and for how many of the listings that have a key it names one. For the embedder of
`agcl+distilled`: the R@1 without attributes, with each generator's, with the true values of the
keys that the first generator wrote, and with the true lists, on both sides; and with each of them
on the query's side against each of them in the gallery. The gap to the true ones is what a better
generator could gain; the gap between the sides is what it gains only if the gallery changes with
the query.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from afmrl_jax.config.marketplace import MARKETPLACE
from afmrl_jax.data.attributes.text_format import (
    format_attributes,
    parse_attributes,
    read_attributes,
)
from afmrl_jax.data.catalogue.load import load_catalogue_of
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.data.marketplace.lists import canonical
from afmrl_jax.evaluation.metrics import positive_ranks, recall_at_k
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.systems import annotations_of, generators_of
from afmrl_jax.runtime.files import write_json
from afmrl_jax.runtime.provenance import provenance
from afmrl_jax.runtime.setup import reported, set_up
from afmrl_jax.training.rar.query_parts import never_learned
from afmrl_jax.types import JsonObject

Meaning = Callable[[str, str], str | None]
"""Of a key and a word."""


@dataclass(frozen=True)
class AttributeQuality:
    """Which run, and which of its listings."""

    run: Path = Path("runs/demo")
    split: Literal["reward", "test"] = "test"
    """Of `reward`, queries are the listings on which RAR does not train, and generators those that
    have written lists for it."""
    result: Path = Path(__file__).parents[1] / "results" / "attribute_quality.json"


def accuracy(
    listings: Sequence[Listing], texts: Mapping[str, str], meaning: Meaning | None = None
) -> JsonObject:
    """Share of correct values and number of written values, by keys that the truth has too.

    Args:
        listings: with their true attributes.
        texts: what was written, by listing.
        meaning: the value that a word stands for, where a catalogue has synonyms.
    """
    written: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for x in listings:
        text, truth = texts[x.listing_id], x.attributes or {}
        for key, value in parse_attributes(text) if text else []:
            if key in truth:
                written[key] += 1
                meant = meaning(key, value) if meaning else None
                right[key] += truth[key] in (value, meant)
    held = Counter(key for x in listings for key in x.attributes or {})
    return {
        k: {"right": round(right[k] / n, 3), "written": n, "of": held[k]}
        for k, n in sorted(written.items())
    }


def true_values(text: str, truth: Mapping[str, str]) -> str:
    """A list's keys with their true values; those that the truth lacks are left out."""
    return format_attributes((k, truth[k]) for k, _ in parse_attributes(text) if k in truth)


def recall_by_sides(
    vectors: Mapping[str, np.ndarray], listings: Sequence[Listing]
) -> dict[str, dict[str, float]]:
    """R@1 in percent of queries with one kind of list in a gallery with another.

    Args:
        vectors: of all listings, [n d], by the kind of their lists.
        listings: n of them, each a query unless RAR trains on it.
    """
    products = np.array([x.true_product for x in listings])
    asked = never_learned(listings)

    def recall(query: np.ndarray, gallery: np.ndarray) -> float:
        ranks = positive_ranks(query[asked], gallery, products[asked], products, asked)
        return round(100 * float(recall_at_k(ranks, 1).mean()), 2)

    return {a: {b: recall(x, y) for b, y in vectors.items()} for a, x in vectors.items()}


def main(settings: AttributeQuality) -> None:
    """Measure, print, write."""
    run = FinishedRun(settings.run)
    catalogue = load_catalogue_of(run.config).subset(settings.split)
    listings = catalogue.listings
    texts: dict[str, Mapping[str, str] | None] = {"none": None}
    for generator in generators_of(run.config):
        written = read_attributes(run.folder / annotations_of(generator) / "attributes.jsonl")
        if all(x.listing_id in written for x in listings):
            texts[generator] = written
    meaning = canonical if run.config.catalogue == MARKETPLACE else None
    quality = {name: accuracy(listings, found, meaning) for name, found in texts.items() if found}
    truth = {x.listing_id: x.attributes or {} for x in listings}
    first = next(found for found in texts.values() if found)
    texts["same keys, true"] = {i: true_values(first[i] or "", x) for i, x in truth.items()}
    texts["truth"] = {i: format_attributes(x.items()) for i, x in truth.items()}
    encoder, builder = run.encoder(run.system("agcl+distilled")), run.rows(catalogue)
    everything = np.arange(len(listings))
    vectors = {
        name: encoder.embed(builder, everything, found, label=f"attributes: {name}")
        for name, found in texts.items()
    }
    sides = recall_by_sides(vectors, listings)
    result = {
        "split": settings.split,
        "accuracy": quality,
        "R@1 of agcl+distilled": {name: sides[name][name] for name in texts},
        "R@1 by the lists of the query, then of the gallery": sides,
    }
    print(json.dumps(result, indent=1))
    write_json(settings.result, provenance() | result)


if __name__ == "__main__":
    with reported():
        set_up()
        main(tyro.cli(AttributeQuality, description=__doc__))
