"""Which listings a step sees: pure functions of (seed, step), so that any step can be replayed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

from afmrl_jax.data.catalogue.splits import linked
from afmrl_jax.errors import CatalogueError

SIBLINGS_PER_FAMILY = 4
"""Most products of one family or duplicate group in a batch, so that a batch holds several."""


def _rng(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *path]))


@lru_cache(maxsize=8)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return _rng(seed, epoch).permutation(count)


def epoch_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Positions of batch `step`: every position once per epoch, in a new order each epoch.

    Batches continue across the end of an epoch, so that all have `batch_size` entries.
    """
    if count < 1:
        raise CatalogueError("no listing to draw a batch from")
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_epoch(count, seed, int(p) // count)[int(p) % count] for p in places])


class PairSampler:
    """Query/candidate pairs for contrastive training.

    A batch holds no product id twice. Parts of it are drawn as sets that belong together, and the
    rest at random:

    * `duplicate_share` from duplicate groups, two or more product ids of each;
    * `sibling_share` from families, two or more products of each, so that near-twins are negatives;
    * `category_share` as sub-batches of up to `category_batch` products of one category. A category
      gives as many sub-batches as it has products for, so products are drawn evenly.

    If the catalogue has too few of a kind, the rest of its share is drawn at random as well.
    """

    def __init__(
        self,
        product_ids: Sequence[str],
        family_ids: Sequence[str | None],
        *,
        batch_size: int,
        sibling_share: float,
        seed: int,
        categories: Sequence[str | None] | None = None,
        category_share: float = 0.0,
        category_batch: int = 16,
        duplicate_groups: Sequence[str | None] | None = None,
        duplicate_share: float = 0.0,
        merge_duplicates: bool = True,
    ):
        """Index the listings.

        Args:
            product_ids: [n], of the listings.
            family_ids: [n].
            batch_size: pairs per batch.
            sibling_share: share of the batch, as are the other two.
            seed: of all batches.
            categories: [n]; needed for a `category_share`.
            category_share: see above.
            category_batch: see above.
            duplicate_groups: [n]; needed for a `duplicate_share`.
            duplicate_share: see above.
            merge_duplicates: whether product ids of one duplicate group share one number.
        """
        nothing = [None] * len(product_ids)
        listings: dict[str, list[int]] = {}
        for place, product in enumerate(product_ids):
            listings.setdefault(product, []).append(place)
        self.products = sorted(p for p, places in listings.items() if len(places) > 1)
        if len(self.products) < 2:
            raise CatalogueError(
                f"contrastive training needs two products with two listings each, but found "
                f"{len(self.products)}; add listings of the same product to the train split"
            )
        self._listings = [np.array(listings[p]) for p in self.products]
        first = linked(product_ids, duplicate_groups or nothing)
        self._siblings = self._sets(
            product_ids, [None if f is None else f"f:{f}" for f in family_ids]
        )
        self._categories = self._sets(product_ids, categories or nothing)
        self._duplicates = self._sets(product_ids, [first[p] for p in product_ids])
        for share, sets, column in (
            (category_share, self._categories, "category"),
            (duplicate_share, self._duplicates, "duplicate_group"),
        ):
            if share and not sets:
                raise CatalogueError(
                    f"agcl.{column.split('_')[0]}_share is {share}, but no two products of the "
                    f"train split share a `{column}`; add that column or set the share to 0"
                )
        self.identity = self._identity(product_ids, first if merge_duplicates else None)
        self.batch_size = min(batch_size, len(self.products))
        self.sibling_share = sibling_share
        self.category_share, self.category_batch = category_share, category_batch
        self.duplicate_share = duplicate_share
        self.seed = seed

    def _sets(
        self, product_ids: Sequence[str], keys: Sequence[Hashable | None]
    ) -> list[np.ndarray]:
        """Numbers of the products under each key that has two or more, by their last listings."""
        key_of = dict(zip(product_ids, keys, strict=True))
        sets: dict[Hashable, list[int]] = {}
        for number, product in enumerate(self.products):
            if key_of[product] is not None:
                sets.setdefault(key_of[product], []).append(number)
        return [np.array(x) for _, x in sorted(sets.items(), key=lambda x: str(x[0])) if len(x) > 1]

    def _identity(self, product_ids: Sequence[str], first: dict[str, str] | None) -> np.ndarray:
        """Product number of every listing, int32 [n]; those without a pair come last."""
        paired = set(self.products)
        names = [*self.products, *sorted({*product_ids} - paired)]
        number: dict[str, int] = {}
        of_set: dict[str, int] = {}
        for place, name in enumerate(names):
            number[name] = place if first is None else of_set.setdefault(first[name], place)
        return np.array([number[p] for p in product_ids], np.int32)

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Batch `step`: positions of queries and of candidates, and product numbers, int [b]."""
        rng = _rng(self.seed, step)
        chosen: list[int] = []
        # A part that is off draws nothing, so the others draw as if it did not exist.
        if self.duplicate_share:
            self._add_sets(chosen, self._duplicates, self.duplicate_share, rng)
        self._add_sets(chosen, self._siblings, self.sibling_share, rng)
        if self.category_share:
            parts = self._category_batches(chosen, rng)
            self._add_sets(chosen, parts, self.category_share, rng, most=self.category_batch)
        taken = set(chosen)
        for product in rng.permutation(len(self.products)):
            if len(chosen) == self.batch_size:
                break
            if int(product) not in taken:
                chosen.append(int(product))
        pairs = [rng.choice(self._listings[p], 2, replace=False) for p in chosen]
        queries, candidates = np.array(pairs).T
        return queries, candidates, self.identity[queries]

    def _add_sets(
        self,
        chosen: list[int],
        sets: Sequence[np.ndarray],
        share: float,
        rng: np.random.Generator,
        most: int = SIBLINGS_PER_FAMILY,
    ) -> None:
        """Add `share` of a batch to `chosen`, at least two and at most `most` from each set."""
        before, taken = len(chosen), set(chosen)
        # Rounded up, shares that add up to a batch could exceed it by one product.
        wanted = min(round(share * self.batch_size), self.batch_size - before)
        for place in rng.permutation(len(sets)):
            room = min(wanted - (len(chosen) - before), most)
            if room < 2:
                break
            found = [int(p) for p in rng.permutation(sets[place]) if int(p) not in taken][:room]
            if len(found) > 1:
                chosen += found

    def _category_batches(self, chosen: list[int], rng: np.random.Generator) -> list[np.ndarray]:
        """The products not yet chosen, cut into sub-batches of one category each."""
        out: list[np.ndarray] = []
        for members in self._categories:
            left = rng.permutation(members[~np.isin(members, chosen)])
            cuts = range(self.category_batch, len(left), self.category_batch)
            out += np.split(left, list(cuts))
        return out
