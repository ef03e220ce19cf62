"""Terms of attribute texts for BM25, and their ids (host side; scores are in objectives/bm25)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from afmrl_jax.errors import AfmrlError
from afmrl_jax.types import JsonObject

# Without the punctuation that sits among the kana (U+30A0, U+30FB).
_CJK = "\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Vowel signs and accents that Python's \w leaves out belong to the word they are written on.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
# A decimal number is one term: 78.7 is neither 78 nor 7.
_TERM = re.compile(rf"[{_CJK}]+|(?:\d+[.,](?=\d))*(?:[^\W_{_CJK}][{_MARKS}]*)+")
_IDEOGRAPH = re.compile(rf"[{_CJK}]")


def split_terms(text: str) -> list[str]:
    """Lower-case words and numbers; Chinese and Japanese runs become character pairs.

    Those scripts write no spaces, and overlapping pairs are the usual substitute for words. A
    single character is a term by itself.

    Example:
        >>> split_terms("Rote Stühle, 78.7 x 50cm 木椅子")
        ['rote', 'stühle', '78.7', 'x', '50cm', '木椅', '椅子']
    """
    out: list[str] = []
    for run in _TERM.findall(unicodedata.normalize("NFKC", text).lower()):
        if _IDEOGRAPH.match(run) and len(run) > 1:
            out += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            out.append(run)
    return out


def attribute_terms(text: str) -> list[str]:
    """Terms of the values of `key: value; ...`; all lists share the keys, which would be noise.

    A part without a colon, which the grammar forbids, counts as a value.

    Example:
        >>> attribute_terms("type: dining chair; color: red")
        ['dining', 'chair', 'red']
    """
    values = [part.partition(":")[2] if ":" in part else part for part in text.split(";")]
    return split_terms(" ".join(values))


@dataclass(frozen=True)
class Bm25Vocabulary:
    """Ids of the terms of a corpus of attribute texts."""

    ids: Mapping[str, int]

    @classmethod
    def fit(cls, texts: Sequence[str], *, attributes: bool = True) -> Bm25Vocabulary:
        """Number the terms of `texts` in sorted order.

        Args:
            texts: the corpus.
            attributes: texts are attribute lists, whose keys do not count; else plain text.
        """
        terms = attribute_terms if attributes else split_terms
        return cls({t: n for n, t in enumerate(sorted({t for x in texts for t in terms(x)}))})

    @property
    def size(self) -> int:
        """Number of terms, at least 1 so that arrays over terms are never empty."""
        return max(len(self.ids), 1)

    def encode(
        self, texts: Sequence[str], max_terms: int, *, attributes: bool = True
    ) -> np.ndarray:
        """Term ids in the order written, repeats included.

        Args:
            texts: n texts.
            max_terms: a; further terms of a text are cut.
            attributes: as in `fit`.

        Returns:
            int32 [n a], padded with -1; an unknown term has the id `size`, so that it counts in
            the length of its text and matches nothing.
        """
        terms = attribute_terms if attributes else split_terms
        out = np.full((len(texts), max_terms), -1, np.int32)
        for row, text in enumerate(texts):
            found = [self.ids.get(t, self.size) for t in terms(text)][:max_terms]
            out[row, : len(found)] = found
        return out

    def to_dict(self) -> JsonObject:
        """The vocabulary as a JSON object, terms in the order of their ids."""
        return {"kind": "bm25_vocabulary", "terms": sorted(self.ids, key=self.ids.__getitem__)}

    @classmethod
    def from_dict(cls, value: Mapping[str, object]) -> Bm25Vocabulary:
        """What `to_dict` wrote.

        Raises:
            AfmrlError: `value` is something else, or names a term twice.
        """
        terms = value.get("terms")
        if value.get("kind") != "bm25_vocabulary" or not isinstance(terms, list):
            raise AfmrlError("not a BM25 vocabulary: fit it again from the attribute texts")
        ids = {str(term): number for number, term in enumerate(terms)}
        if len(ids) != len(terms):
            raise AfmrlError("BM25 vocabulary names a term twice: fit it again")
        return cls(ids)


class BatchTerms(NamedTuple):
    """The texts of a batch over the batch's own vocabulary, see `batch_vocabulary`."""

    terms: np.ndarray
    """int32 [u]; ids in the corpus by id in the batch, -1 is padding."""
    query: np.ndarray
    """int32 [q a]; ids in the batch, -1 is padding, u a term that only adds length."""
    candidate: np.ndarray
    """int32 [c n], likewise."""


def batch_vocabulary(
    query: np.ndarray, candidate: np.ndarray, vocab_size: int, *, size: int | None = None
) -> BatchTerms:
    """Renumber the terms of a batch, so that tables over terms are as small as the batch.

    Only a term that occurs in both a query and a candidate can add to a score, so only those get an
    id; the others become unknown terms, which still count in the length of their text. Scores over
    `Bm25Statistics.restricted(terms)` equal those over the corpus. This runs in the loader, where
    sizes are known: on the device `Bm25Terms.localised` needs room for the largest number of terms
    that a batch of that shape could share.

    Example:
        >>> found = batch_vocabulary(np.array([[7, 2]]), np.array([[2, 5], [9, -1]]), 9, size=2)
        >>> found.terms.tolist(), found.query.tolist(), found.candidate.tolist()
        ([2, -1], [[2, 0]], [[0, 2], [2, -1]])

    Args:
        query: int [q a], ids in the corpus, -1 is padding; as `Bm25Vocabulary.encode` makes them.
        candidate: int [c n], likewise.
        vocab_size: of the corpus; ids from there on are unknown.
        size: u; None to choose it: 256, or a size of which at most a fifth is padding, in steps of
            a quarter of a power of two, so that few shapes are compiled.

    Raises:
        AfmrlError: the batch shares more than `size` terms.
    """
    seen = np.zeros((2, vocab_size + 1), bool)
    places = []
    for side, terms in enumerate((query, candidate)):
        places.append(np.where((terms >= 0) & (terms < vocab_size), terms, vocab_size))
        seen[side, places[side]] = True
    shared = np.flatnonzero(seen[:, :vocab_size].all(0))
    if size is None:
        step = max(1 << len(shared).bit_length() >> 3, 1)
        size = max(256, -(-len(shared) // step) * step)
    if len(shared) > size:
        raise AfmrlError(
            f"the batch shares {len(shared)} attribute terms and has room for {size}: "
            "give a larger size, or None to have it chosen"
        )
    number = np.full(vocab_size + 1, size, np.int32)
    number[shared] = np.arange(len(shared), dtype=np.int32)
    ids = np.full(size, -1, np.int32)
    ids[: len(shared)] = shared
    texts = (
        np.where(terms < 0, np.int32(-1), number[place])
        for terms, place in zip((query, candidate), places, strict=True)
    )
    return BatchTerms(ids, *texts)
