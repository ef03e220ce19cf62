"""How accurate a run's generators are on the test split, and what the true attributes would bring.

    python -m experiments.studies.attribute_quality --run runs/demo

Writes experiments/results/attribute_quality.json: for each generator the share of correct values by
key, and for the embedder of `agcl+distilled` the R@1 without attributes, with each generator's, and
with the true ones. The gap to the true ones is what a better generator could gain.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from afmrl_jax.types import JsonObject

Meaning = Callable[[str, str], str | None]
"""Of a key and a word."""


@dataclass(frozen=True)
class AttributeQuality:
    """Which run."""

    run: Path = Path("runs/demo")
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
    return {k: {"right": round(right[k] / n, 3), "written": n} for k, n in sorted(written.items())}


def main(settings: AttributeQuality) -> None:
    """Measure, print, write."""
    run = FinishedRun(settings.run)
    test = load_catalogue_of(run.config).subset("test")
    texts: dict[str, Mapping[str, str] | None] = {"none": None}
    for generator in generators_of(run.config):
        written = run.folder / annotations_of(generator) / "attributes.jsonl"
        texts[generator] = read_attributes(written)
    meaning = canonical if run.config.catalogue == MARKETPLACE else None
    texts["truth"] = {
        x.listing_id: format_attributes((x.attributes or {}).items()) for x in test.listings
    }
    quality = {
        name: accuracy(test.listings, found, meaning)
        for name, found in texts.items()
        if found is not None and name != "truth"
    }
    encoder, builder = run.encoder(run.system("agcl+distilled")), run.rows(test)
    products = np.array([x.true_product for x in test.listings])
    own, recall = np.arange(len(products)), {}
    for name, found in texts.items():
        vectors = encoder.embed(builder, own, found, label=f"attributes: {name}")
        ranks = positive_ranks(vectors, vectors, products, products, own)
        recall[name] = round(100 * float(recall_at_k(ranks, 1).mean()), 2)
    result = {"accuracy": quality, "R@1 of agcl+distilled": recall}
    print(json.dumps(result, indent=1))
    write_json(settings.result, provenance() | result)


if __name__ == "__main__":
    with reported():
        set_up()
        main(tyro.cli(AttributeQuality, description=__doc__))
