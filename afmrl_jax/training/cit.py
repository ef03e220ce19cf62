"""Cyclic iterative training: the reinforced generator re-annotates, the embedder learns; repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from afmrl_jax.config import AgclConfig, RunConfig
from afmrl_jax.data.attributes.lists import Lists


def cit_settings(config: RunConfig) -> AgclConfig:
    """AGCL settings of a cycle: fewer steps at a lower rate, everything else as before.

    Masks need no warm-up: the embedder comes trained.
    """
    optimizer = dataclasses.replace(
        config.agcl.optimizer, learning_rate=config.cit.learning_rate, warmup_share=0.05
    )
    return dataclasses.replace(
        config.agcl, steps=config.cit.steps, mask_warmup=0.0, optimizer=optimizer
    )


SEEDS_APART = 1000
"""Between the seeds of the batches of two cycles."""


def cit_seed(config: RunConfig, cycle: int) -> int:
    """Seed of a cycle's batches and dropout: that of no stage before it; its control shares it."""
    return config.seed + (SEEDS_APART * cycle if config.cit.fresh_batches else 0)


def difference(before: str, after: str) -> float:
    """How far two attribute texts are apart, in [0, 1]: one less the share of pairs in common.

    Example:
        >>> round(difference("color: red; size: xl", "size: xl; color: blue"), 2)
        0.67
    """
    left, right = ({part.strip() for part in x.split(";")} - {""} for x in (before, after))
    return len(left ^ right) / max(len(left | right), 1)


def annotation_order(
    config: RunConfig,
    listing_ids: Sequence[str],
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> np.ndarray:
    """Positions of the training listings in the order in which cycles take the new attributes.

    Random as in the paper, or those first whose attributes changed most (equal ones at random).

    Args:
        config: of the run.
        listing_ids: of the training listings.
        before: attribute text by listing id, by the distilled generator.
        after: by the reinforced generator; needed only where the difference decides.
    """
    order = _drawn(config, len(listing_ids))
    if config.cit.choice == "random":
        return order
    ids = [listing_ids[i] for i in order]
    changed = np.array([difference(before.get(i, ""), after.get(i, "")) for i in ids])
    return order[np.argsort(-changed, kind="stable")]


def listings_to_annotate(config: RunConfig, count: int) -> np.ndarray:
    """Positions of the training listings that the reinforced generator must annotate, sorted.

    All where the difference decides, or where the generator is reinforced again and its lists are
    the gallery; otherwise those that some cycle takes.
    """
    if config.cit.choice == "difference" or config.cit.rar_between:
        return np.arange(count)
    return np.sort(_drawn(config, count)[: _taken(config, count, config.cit.cycles)])


def _drawn(config: RunConfig, count: int) -> np.ndarray:
    return np.random.default_rng([config.seed, 77]).permutation(count)


def _taken(config: RunConfig, count: int, cycle: int) -> int:
    """How many listings have new attributes in a cycle: a further share in each."""
    return min(count, max(1, round(cycle * config.cit.share * count)))


def cycle_attributes(
    config: RunConfig,
    cycle: int,
    listing_ids: Sequence[str],
    before: Lists,
    after: Lists,
) -> Lists:
    """The lists of the training listings in a cycle.

    Args:
        config: of the run.
        cycle: from 1; each gives new attributes to a further share of the listings.
        listing_ids: of the training listings.
        before: by the distilled generator.
        after: by the reinforced generator; what it has not written stays as it was.
    """
    order = annotation_order(config, listing_ids, before.both, after.both)
    new = [listing_ids[i] for i in order[: _taken(config, len(listing_ids), cycle)]]
    return before.with_newer(after, new)
