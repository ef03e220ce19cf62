"""Pairs of listings that may be one product: the nearest of each, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from afmrl_jax.matching.lists import AttributeTable
from afmrl_jax.retrieval.types import SearchResult

BLOCK = 4096
"""Listings whose neighbours are in memory at a time."""


class Searched(Protocol):
    """Whatever finds the nearest vectors, as an index does."""

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k nearest of each query [q d]."""
        ...


class Pairs(NamedTuple):
    """Pairs of listings, [n] each."""

    left: np.ndarray
    """int64; place of a listing"""
    right: np.ndarray
    """int64; place of the other, in the other catalogue if there is one"""
    cosine: np.ndarray
    """float32"""
    agree: np.ndarray
    """float32; how many attributes agree"""
    differ: np.ndarray
    """float32; how many differ"""

    def take(self, chosen: np.ndarray) -> Pairs:
        """Some of them, by place or by mask."""
        return Pairs(*(x[chosen] for x in self))

    def order(self, size: int) -> np.ndarray:
        """A number for each pair, so that equal ones have equal numbers; int64.

        Args:
            size: number of listings of the right side.
        """
        return self.left * size + self.right


@dataclass(frozen=True)
class Side:
    """A catalogue as matching sees it."""

    vectors: np.ndarray
    """float32 [n d], unit vectors; may be memory-mapped."""
    lists: AttributeTable | None = None
    """None if the embedder reads no lists."""

    def __len__(self) -> int:
        return len(self.vectors)


def pairs_of(one: Side, left: np.ndarray, other: Side, right: np.ndarray) -> Pairs:
    """Given pairs, compared.

    Args:
        one: the catalogue of the left listings.
        left: int [n].
        other: the catalogue of the right listings, which may be the same.
        right: int [n].
    """
    left, right = np.asarray(left, np.int64), np.asarray(right, np.int64)
    ours, theirs = one.vectors[left], other.vectors[right]
    cosine = np.einsum("nd,nd->n", ours, theirs, dtype=np.float32)
    return _compared(one, left, other, right, cosine)


def candidate_blocks(
    one: Side, other: Side, index: Searched, k: int, *, block: int = BLOCK
) -> Iterator[Pairs]:
    """The k nearest of each listing, `block` listings at a time: never a table of all with all.

    Within one catalogue a listing is no candidate of itself, each pair has its smaller place on the
    left, and one that is found from both sides comes twice.

    Args:
        one: the catalogue that asks.
        other: the catalogue that is searched; the same object for duplicates within one.
        index: of the vectors of `other`, in their order.
        k: how many of each; those of no likelihood are sorted out later.
        block: listings at a time.
    """
    same = one is other
    for begin in range(0, len(one), block):
        queries = np.asarray(one.vectors[begin : begin + block], np.float32)
        found = index.search(queries, k + same)
        count = found.positions.shape[1]
        left = np.repeat(np.arange(begin, begin + len(queries), dtype=np.int64), count)
        right, cosine = found.positions.ravel().astype(np.int64), found.scores.ravel()
        # An approximate index may find fewer.
        kept = (right >= 0) & (right < len(other))
        if same:
            kept &= left != right
        left, right, cosine = left[kept], right[kept], cosine[kept]
        if same:
            left, right = np.minimum(left, right), np.maximum(left, right)
        yield _compared(one, left, other, right, cosine)


def _compared(
    one: Side, left: np.ndarray, other: Side, right: np.ndarray, cosine: np.ndarray
) -> Pairs:
    if one.lists is None or other.lists is None:
        none = np.zeros(len(left), np.float32)
        return Pairs(left, right, cosine, none, none)
    return Pairs(left, right, cosine, *one.lists.compare(left, other.lists, right))


def joined(blocks: list[Pairs], size: int) -> Pairs:
    """Blocks as one, each pair once, in order of its places.

    Args:
        blocks: at least one.
        size: number of listings of the right side.
    """
    whole = Pairs(*(np.concatenate(x) for x in zip(*blocks, strict=True)))
    _, first = np.unique(whole.order(size), return_index=True)
    return whole.take(first)
