"""How far the attribute lists of two listings agree, for many pairs at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from afmrl_jax.data.attributes.text_format import (
    is_malformed,
    parse_attributes,
    salvage_attributes,
)


@dataclass
class Vocabulary:
    """Numbers of keys, and of pairs of key and value, shared by the tables that are compared."""

    keys: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[int, str], int] = field(default_factory=dict)


def read_pairs(text: str) -> list[tuple[str, str]]:
    """Key and value of each attribute of a list; of a malformed one, what can be saved of it."""
    if is_malformed(text):
        text = salvage_attributes(text)
    return parse_attributes(text) if text else []


class AttributeTable:
    """The lists of n listings as two sparse tables of ones, of their keys and of their pairs.

    Values are compared as texts, without regard to case and spaces.

    Args:
        texts: attribute lists, n of them; an empty one for a listing that has none.
        vocabulary: grows with the texts; tables that are compared share one.

    Example:
        >>> table = AttributeTable(["type: chair; color: oak", "color: Oak; type: stool"])
        >>> agree, differ = table.compare([0], table, [1])
        >>> int(agree[0]), int(differ[0])
        (1, 1)
    """

    def __init__(self, texts: Iterable[str], vocabulary: Vocabulary | None = None):
        self.vocabulary = known = vocabulary or Vocabulary()
        keys, pairs, ends = list[int](), list[int](), [0]
        for text in texts:
            for key, value in read_pairs(text):
                number = known.keys.setdefault(key, len(known.keys))
                word = (number, " ".join(value.casefold().split()))
                keys.append(number)
                pairs.append(known.pairs.setdefault(word, len(known.pairs)))
            ends.append(len(keys))
        self._ends = np.array(ends, np.int64)
        self._columns = {"keys": np.array(keys, np.int64), "pairs": np.array(pairs, np.int64)}
        self._tables: dict[tuple[str, int], sparse.csr_matrix] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def compare(
        self, own: np.ndarray | list[int], other: AttributeTable, theirs: np.ndarray | list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many attributes agree and how many differ; a key that only one has does neither.

        Args:
            own: rows of this table, [n].
            other: the table of the other sides, with the same vocabulary.
            theirs: its rows, [n].

        Returns:
            Two of float32 [n].
        """
        shared = [
            np.asarray(
                self._ones(name, width)[own].multiply(other._ones(name, width)[theirs]).sum(axis=1)
            ).ravel()
            for name, width in (
                ("keys", len(self.vocabulary.keys)),
                ("pairs", len(self.vocabulary.pairs)),
            )
        ]
        return shared[1].astype(np.float32), (shared[0] - shared[1]).astype(np.float32)

    def _ones(self, name: str, width: int) -> sparse.csr_matrix:
        found = self._tables.get((name, width))
        if found is None:
            columns = self._columns[name]
            # One column more, so that a vocabulary without words makes a table too.
            ones, shape = np.ones(len(columns), np.int32), (len(self), width + 1)
            found = sparse.csr_matrix((ones, columns, self._ends), shape)
            # Another table of the vocabulary may have made it wider since.
            self._tables[name, width] = found
        return found
