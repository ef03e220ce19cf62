"""Which split a listing belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from afmrl_jax.data.catalogue.records import SPLITS
from afmrl_jax.errors import CatalogueError


def draw_splits(groups: list[str], duplicates: list[str | None]) -> dict[str, str]:
    """Split of each family (or product), by a hash; families that a duplicate group links share it.

    Args:
        groups: [n], `Listing.group` of every listing, or of every pair that occurs.
        duplicates: [n], `Listing.duplicate_group` of the same.
    """
    first = linked(groups, duplicates)
    splits = hash_splits(list(first.values()))
    return {group: splits[first[group]] for group in first}


SPLIT_SHARES = (0.45, 0.25, 0.10, 0.20)


def linked(names: Sequence[str], links: Sequence[str | None]) -> dict[str, str]:
    """Names that share a link, directly or through others, under the first of them in order.

    Args:
        names: [n], repeats allowed.
        links: [n], what each is linked by, or None.

    Returns:
        By name, the first name of its set; without links, the name itself.

    Example:
        >>> linked(["b", "a", "c", "c"], ["x", "x", None, "y"])
        {'b': 'a', 'a': 'a', 'c': 'c'}
    """
    first: dict[str, str] = {name: name for name in names}

    def root(name: str) -> str:
        while first[name] != name:
            first[name] = first[first[name]]
            name = first[name]
        return name

    holder: dict[str, str] = {}
    for name, link in zip(names, links, strict=True):
        if link is not None:
            one, other = sorted((root(name), root(holder.setdefault(link, name))))
            first[other] = one
    return {name: root(name) for name in first}


def hash_splits(groups: list[str]) -> dict[str, str]:
    """Split of each group (family or product) by the order of their hashes.

    The shares are those of `SPLIT_SHARES`; every split gets at least one group.

    Raises:
        CatalogueError: fewer groups than splits.
    """
    order = sorted(set(groups), key=lambda g: hashlib.sha256(g.encode()).hexdigest())
    if len(order) < len(SPLITS):
        raise CatalogueError(
            f"a catalogue without a `split` column needs {len(SPLITS)} families or more (products, "
            f"if no family_id is given) to divide, but has {len(order)}; add products"
        )
    edges = np.round(np.cumsum(SPLIT_SHARES) * len(order)).astype(int)
    edges = np.maximum(edges, np.arange(1, len(SPLITS) + 1))
    edges = np.minimum(edges, len(order) - np.arange(len(SPLITS))[::-1])
    return {g: SPLITS[int(np.searchsorted(edges, n, "right"))] for n, g in enumerate(order)}
