"""Which listings a step sees: pure functions of (seed, step), so that any step can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from afmrl_jax.errors import CatalogueError

SIBLINGS_PER_FAMILY = 4
"""Most products one family gives a batch, so that siblings come from several families."""


def _rng(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *path]))


@lru_cache(maxsize=8)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return _rng(seed, epoch).permutation(count)


def epoch_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Positions of batch `step`: every position once an epoch, in an order new each epoch.

    Batches run on across the end of an epoch, so that all have `batch_size` entries.
    """
    if count < 1:
        raise CatalogueError("no listing to draw a batch from")
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_epoch(count, seed, int(p) // count)[int(p) % count] for p in places])


class PairSampler:
    """Query/candidate pairs for contrastive training.

    A batch holds no product twice; `sibling_share` of it comes from families that give at least
    two of their products each, so that near-twins meet as negatives.
    """

    def __init__(
        self,
        product_ids: Sequence[str],
        family_ids: Sequence[str | None],
        *,
        batch_size: int,
        sibling_share: float,
        seed: int,
    ):
        listings: dict[str, list[int]] = {}
        family_of: dict[str, str] = {}
        for place, (product, family) in enumerate(zip(product_ids, family_ids, strict=True)):
            listings.setdefault(product, []).append(place)
            family_of[product] = f"f:{family}" if family is not None else f"p:{product}"
        self.products = sorted(p for p, places in listings.items() if len(places) > 1)
        if len(self.products) < 2:
            raise CatalogueError(
                f"contrastive training needs two products with two listings each, found "
                f"{len(self.products)}; add listings of the same product to the train split"
            )
        self._listings = [np.array(listings[p]) for p in self.products]
        families: dict[str, list[int]] = {}
        for number, product in enumerate(self.products):
            families.setdefault(family_of[product], []).append(number)
        self._siblings = [np.array(f) for _, f in sorted(families.items()) if len(f) > 1]
        self.batch_size = min(batch_size, len(self.products))
        self.sibling_share = sibling_share
        self.seed = seed

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Batch `step`: positions of queries and of candidates, and product numbers, int [b]."""
        rng = _rng(self.seed, step)
        chosen: list[int] = []
        wanted = round(self.sibling_share * self.batch_size)
        for family in rng.permutation(len(self._siblings)):
            room = min(wanted - len(chosen), SIBLINGS_PER_FAMILY)
            if room < 2:
                break
            chosen += [int(p) for p in rng.permutation(self._siblings[family])[:room]]
        taken = set(chosen)
        for product in rng.permutation(len(self.products)):
            if len(chosen) == self.batch_size:
                break
            if int(product) not in taken:
                chosen.append(int(product))
        pairs = [rng.choice(self._listings[p], 2, replace=False) for p in chosen]
        queries, candidates = np.array(pairs).T
        return queries, candidates, np.array(chosen, np.int32)
