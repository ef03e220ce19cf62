"""The listings that came after an index was written: few enough to be compared one by one.

They are searched by NumPy, so that a new listing compiles no program and copies no large array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from afmrl_jax.runs.living.changes import Entry

ROOM = 64
"""Rows that the array of vectors begins with; it doubles when it is full."""


class Delta:
    """Entries by id, in the order in which they came.

    Args:
        dim: length of their vectors.
        dtype: type of the index's vectors, to which these are rounded too, so that a listing scores
            the same before and after the log is compacted.
    """

    def __init__(self, dim: int, dtype: str):
        self._half = dtype == "bfloat16"
        self._vectors = np.zeros((ROOM, dim), np.float32)
        self._alive = np.zeros(ROOM, bool)
        self._entries: list[Entry | None] = []
        self._place: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, listing_id: str) -> bool:
        return listing_id in self._place

    def __iter__(self) -> Iterator[Entry]:
        return (x for x in self._entries if x is not None)

    def __getitem__(self, listing_id: str) -> Entry:
        found = self._entries[self._place[listing_id]]
        assert found is not None, "only living entries have a place"
        return found

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries, or replace those of the same ids."""
        for x in entries:
            self.discard(x.listing_id)
            place = len(self._entries)
            if place == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
                self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])
            vector = x.vector
            if self._half:
                vector = vector.astype(ml_dtypes.bfloat16).astype(np.float32)
            self._vectors[place], self._alive[place] = vector, True
            self._entries.append(x)
            self._place[x.listing_id] = place

    def discard(self, listing_id: str) -> bool:
        """Take an entry out, and say whether it was there."""
        place = self._place.pop(listing_id, None)
        if place is None:
            return False
        self._entries[place], self._alive[place] = None, False
        return True

    def search(
        self, queries: np.ndarray, k: int, chosen: np.ndarray | None = None
    ) -> list[list[tuple[str, float]]]:
        """Id and score of the k best of each query [q d], best first.

        Args:
            queries: float32.
            k: at most.
            chosen: bool, one for each of `entries`; None for all.
        """
        count = len(self._entries)
        alive = self._alive[:count] if chosen is None else self._alive[:count] & chosen
        places = np.flatnonzero(alive)
        if not len(places):
            return [[] for _ in queries]
        if self._half:
            queries = queries.astype(ml_dtypes.bfloat16).astype(np.float32)
        scores = queries @ self._vectors[places].T
        out = []
        for row in scores:
            best = np.argsort(-row, kind="stable")[:k]
            out.append([(self._id(int(places[n])), float(row[n])) for n in best])
        return out

    def _id(self, place: int) -> str:
        found = self._entries[place]
        assert found is not None, "only living entries are searched"
        return found.listing_id

    @property
    def entries(self) -> list[Entry | None]:
        """All that came, None for what went."""
        return self._entries
