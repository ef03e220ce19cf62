"""The attribute lists of listings, by what their writer saw of each listing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from afmrl_jax.config import ListsConfig
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import read_records
from afmrl_jax.types import Modality

Text = TypeVar("Text")

WRITTEN: dict[Modality, str] = {
    "both": "attributes.jsonl",
    "image": "attributes-image.jsonl",
    "text": "attributes-text.jsonl",
}
"""File of the greedy lists, by what their writer saw."""
SAMPLED: dict[Modality, str] = {
    shown: name.replace("attributes", "samples") for shown, name in WRITTEN.items()
}
"""File of the sampled lists."""


def modalities(config: ListsConfig) -> tuple[Modality, ...]:
    """What lists are written from."""
    return ("both", "image", "text") if config.lone else ("both",)


@dataclass(frozen=True)
class Lists:
    """Attribute texts by listing id. A listing that has none, or an empty one, has no list."""

    both: Mapping[str, str]
    """Greedy ones, written from picture and title."""
    image: Mapping[str, str] = field(default_factory=dict)
    """Greedy ones, written from the picture alone."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Greedy ones, written from the title alone."""
    samples: Mapping[Modality, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Sampled ones of each listing, by what their writer saw."""

    @classmethod
    def read(cls, folder: Path, config: ListsConfig) -> Lists:
        """The lists that a stage has written.

        Raises:
            CatalogueError: a file cannot be read.
        """
        shown = modalities(config)
        written = {x: read_attributes(folder / WRITTEN[x]) for x in shown}
        samples = {x: read_samples(folder / SAMPLED[x]) for x in shown if config.samples}
        return cls(**written, samples=samples)

    def of(self, shown: Modality) -> Mapping[str, str]:
        """The greedy lists of a writer that saw no more than `shown`."""
        return {"both": self.both, "image": self.image, "text": self.text}[shown]

    def draw(self, listing_id: str, shown: Modality, rng: np.random.Generator) -> str | None:
        """The greedy list of a listing, or one of its sampled ones, all equally likely."""
        greedy = self.of(shown).get(listing_id)
        sampled = self.samples.get(shown, {}).get(listing_id, ())
        if not sampled:
            return greedy
        chosen = int(rng.integers(len(sampled) + 1))
        return sampled[chosen] if chosen < len(sampled) else greedy

    def with_newer(self, newer: Lists, listing_ids: Collection[str]) -> Lists:
        """These lists, with those of some listings taken from `newer` where it has any."""

        def merged(old: Mapping[str, Text], new: Mapping[str, Text]) -> dict[str, Text]:
            return {**old, **{x: new[x] for x in listing_ids if x in new}}

        shown = sorted({*self.samples, *newer.samples})
        return Lists(
            merged(self.both, newer.both),
            merged(self.image, newer.image),
            merged(self.text, newer.text),
            {x: merged(self.samples.get(x, {}), newer.samples.get(x, {})) for x in shown},
        )


def read_samples(path: Path) -> dict[str, list[str]]:
    """Sampled lists by listing id, from a file of a run's stage.

    Raises:
        CatalogueError: the file is missing, or a line is not such a record.
    """
    remedy = f"delete {path.parent} to do this stage and those after it again"
    if not path.is_file():
        raise CatalogueError(f"{path} is missing; {remedy}")
    found: dict[str, list[str]] = {}
    for number, record in enumerate(read_records(path, error=CatalogueError, remedy=remedy), 1):
        name, texts = record.get("listing_id"), record.get("samples")
        if (
            not isinstance(name, str)
            or not isinstance(texts, list)
            or not all(isinstance(x, str) for x in texts)
        ):
            raise CatalogueError(
                f"{path}, line {number}: not a record with `listing_id` and `samples`, a list of "
                f"texts; {remedy}"
            )
        found[name] = texts
    return found
