"""The oracle that the generator is distilled from: attributes as a large captioner writes them.

Its text differs from listing to listing (synonyms, order, omitted keys), is sometimes generic and
now and then wrong; `OracleConfig` says how often. The embedder never sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from afmrl_jax.config import OracleConfig
from afmrl_jax.data.attributes.text_format import format_attributes, read_attributes
from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.furniture.lexicon import GENERIC, SYNONYMS
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import file_hash
from afmrl_jax.types import JsonObject

_DIGIT = re.compile(r"\d")


def _rng(seed: int, listing_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{listing_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def values_by_key(listings: Sequence[Listing]) -> dict[str, list[str]]:
    """All values of each key, from which wrong ones are drawn."""
    found: dict[str, set[str]] = {}
    for listing in listings:
        for key, value in (listing.attributes or {}).items():
            found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in sorted(found.items())}


def write_oracle(
    listing_id: str,
    title: str,
    attributes: Mapping[str, str],
    config: OracleConfig,
    *,
    seed: int,
    choices: Mapping[str, Sequence[str]],
) -> str:
    """The oracle's attribute text for one listing: never empty, always well-formed.

    Args:
        listing_id: decides, together with `seed`, everything random.
        title: what the oracle reads besides the picture.
        attributes: the truth, at least one pair.
        config: how often the text departs from it.
        seed: of the run.
        choices: values of each key in the catalogue.
    """
    rng = _rng(seed, listing_id)
    pairs: list[tuple[str, str]] = []
    for key, truth in attributes.items():
        omit, wrong, synonym, pick, guess = rng.random(5)
        value = truth
        if wrong < config.wrong_rate and len(choices.get(key, ())) > 1:
            value = choices[key][int(pick * len(choices[key]))]
        if synonym < config.synonym_rate and value in SYNONYMS:
            words = SYNONYMS[value]
            value = words[int(pick * len(words))]
        unseen = _DIGIT.search(truth) and not _DIGIT.search(title) and guess >= config.guess_rate
        if omit >= config.omit_rate and not unseen:
            pairs.append((key, value))
    if not pairs:
        pairs = [list(attributes.items())[int(rng.integers(len(attributes)))]]
    if rng.random() < config.generic_rate:
        key, _, value = GENERIC[int(rng.integers(len(GENERIC)))].partition(": ")
        pairs = [pair for pair in pairs if pair[0] != key] + [(key, value)]
    if rng.random() < config.shuffle_rate:
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return format_attributes(pairs)


def oracle_texts(listings: Sequence[Listing], config: OracleConfig, seed: int) -> list[str]:
    """What the generator learns, one text per listing: its own `oracle` text if it has one."""
    choices = values_by_key(listings)
    return [
        listing.oracle
        or write_oracle(
            listing.listing_id,
            listing.title,
            listing.attributes or {},
            config,
            seed=seed,
            choices=choices,
        )
        for listing in listings
    ]


def taught_texts(
    catalogue: Catalogue, config: OracleConfig, seed: int
) -> tuple[Catalogue, list[str]]:
    """The listings of the `distill` split that have known attributes, and their oracle texts.

    Raises:
        CatalogueError: the file named in the settings has no listing of the split.
    """
    taught = catalogue.subset("distill")
    if config.file is not None:
        texts = read_attributes(Path(config.file))
        kept = tuple(x for x in taught.listings if texts.get(x.listing_id))
        if not kept:
            raise CatalogueError(
                f"{config.file} has no attributes of any of the {len(taught.listings)} listings of "
                f"the `distill` split of {catalogue.name}: run `afmrl oracle` on that catalogue"
            )
        return Catalogue(taught.name, kept), [texts[x.listing_id] for x in kept]
    kept = tuple(x for x in taught.listings if x.attributes or x.oracle)
    return Catalogue(taught.name, kept), oracle_texts(kept, config, seed)


def oracle_inputs(config: OracleConfig) -> JsonObject:
    """What determines the oracle's texts, for a run's lineage: its settings, or the file's hash."""
    if config.file is not None:
        return {"file": file_hash(config.file)}
    return {name: value for name, value in vars(config).items() if name != "file"}
