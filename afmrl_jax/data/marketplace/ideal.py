"""What a perfect model could reach on each task, and what chance gives.

A photo tells all that can be seen; a title tells what it states. A gallery listing is compatible
with a query if the two disagree in nothing that both tell. The perfect model ranks the compatible
listings by how much agrees: an agreement in a key of n values is n times as likely for the query's
own product as for another one. Listings that agree alike are ranked at random, so what is computed
is an expectation: no run can be expected to lie above it for long, and how far it falls short is
what is left to learn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from afmrl_jax.data.marketplace.world import ATTRIBUTES, VISIBLE

KS = (1, 5, 10)
VIEWS = ("both", "text", "image")
TASKS: dict[str, tuple[str, str]] = {
    "fine": ("both", "both"),
    "text_to_image": ("text", "image"),
    "image_to_multimodal": ("image", "both"),
    "image_to_image": ("image", "image"),
}
"""The evaluation's tasks that search for the same product: view of the query, of the gallery."""
ROWS = 256
"""Queries at a time."""
UNKNOWN, ABSENT = -1, 100
"""Codes of what a view does not tell, and of an attribute that does not apply."""
_KEYS = tuple(ATTRIBUTES)


@dataclass(frozen=True)
class Known:
    """What the views of some listings tell.

    Codes of values, int8 [n k], with `UNKNOWN` for what a view does not tell; that an attribute
    does not apply counts as a value, which photos show.
    """

    both: np.ndarray
    text: np.ndarray
    image: np.ndarray

    def view(self, name: str) -> np.ndarray:
        """The codes of one view."""
        found: np.ndarray = getattr(self, name)
        return found


def known_of(combinations: Sequence[Mapping[str, str]], stated: Sequence[Collection[str]]) -> Known:
    """What the views of listings tell.

    Args:
        combinations: [n], the products.
        stated: [n], the keys that the titles state.
    """
    codes = np.full((len(combinations), len(_KEYS)), ABSENT, np.int8)
    for row, combination in enumerate(combinations):
        for column, key in enumerate(_KEYS):
            if key in combination:
                codes[row, column] = ATTRIBUTES[key].values.index(combination[key])
    told = np.array([[key in keys for key in _KEYS] for keys in stated], bool)
    seen = np.array([key in VISIBLE for key in _KEYS])
    return Known(
        both=np.where(told | seen, codes, UNKNOWN),
        text=np.where(told, codes, UNKNOWN),
        image=np.where(seen, codes, UNKNOWN),
    )


def evidence(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """How strongly each gallery listing agrees with each query, float32 [q g].

    The sum of log n over the keys, of n values, in which both agree; minus infinity where they
    disagree in any.

    Args:
        queries: codes, [q k].
        gallery: codes, [g k].
    """
    one, other = _one_hot(queries), _one_hot(gallery)
    agreements = one @ other.T
    common = (queries != UNKNOWN).astype(np.float32) @ (gallery != UNKNOWN).astype(np.float32).T
    return np.where(agreements == common, (one * _WEIGHTS) @ other.T, np.float32(-np.inf))


def _one_hot(codes: np.ndarray) -> np.ndarray:
    """A column for each value of each key, float32 [n v]; unknown keys are zeros."""
    return (codes[:, _COLUMNS] == _CODES).astype(np.float32)


_PAIRS = [
    (column, code)
    for column, key in enumerate(_KEYS)
    for code in (*range(len(ATTRIBUTES[key].values)), ABSENT)
]
_COLUMNS = np.array([column for column, _ in _PAIRS])
_CODES = np.array([code for _, code in _PAIRS], np.int8)
# In whole parts of 1/1024, so that equal agreements are exact ties whatever their order.
_WEIGHTS = np.array(
    [round(1024 * math.log(len(ATTRIBUTES[_KEYS[column]].values))) / 1024 for column, _ in _PAIRS],
    np.float32,
)


@cache
def expected(above: int, tied: int, hits: int) -> tuple[tuple[float, ...], float]:
    """Expected R@k, for each of `KS`, and reciprocal rank if ties are broken at random.

    Args:
        above: listings that rank before the best of the query's product.
        tied: listings that rank like it, itself included.
        hits: how many of those are of the query's product; at least one.
    """
    recall, reciprocal, missed = [0.0] * len(KS), 0.0, 1.0
    # No hit before a place among the tied, and one at it.
    for place in range(1, tied - hits + 2):
        first = missed * hits / (tied - place + 1)
        reciprocal += first / (above + place)
        recall = [x + first * (above + place <= k) for x, k in zip(recall, KS, strict=True)]
        missed -= first
    return tuple(recall), reciprocal


def ideal_values(known: Known, products: Sequence[str]) -> dict[str, object]:
    """The ideal and the chance of every task, in percent, over all listings that have a positive.

    Args:
        known: what the listings' views tell.
        products: [n], of the listings.

    Returns:
        `{"tasks": {task: {"ideal": {metric: value}, "chance": {metric: value}}}, ...}`
    """
    ids = np.unique(np.asarray(products), return_inverse=True)[1]
    counts = np.bincount(ids)[ids]
    asked = np.flatnonzero(counts > 1)
    chance = _means([expected(0, len(ids) - 1, int(counts[i]) - 1) for i in asked])
    tasks = {}
    for name, (query, gallery) in TASKS.items():
        found: list[tuple[tuple[float, ...], float]] = []
        for begin in range(0, len(asked), ROWS):
            rows = asked[begin : begin + ROWS]
            scores = evidence(known.view(query)[rows], known.view(gallery))
            found += _ranked(scores, ids[rows, None] == ids[None, :], rows)
        tasks[name] = {"ideal": _means(found), "chance": chance}
    return {"queries": len(asked), "gallery": len(ids), "tasks": tasks}


def _ranked(
    scores: np.ndarray, same: np.ndarray, rows: np.ndarray
) -> list[tuple[tuple[float, ...], float]]:
    """Expectations of some queries.

    Args:
        scores: [q g].
        same: which listings are of the query's product, bool [q g].
        rows: place of each query in the gallery, [q]; its own listing does not count.
    """
    scores[np.arange(len(rows)), rows] = np.nan
    best = np.nanmax(np.where(same, scores, np.nan), axis=1, keepdims=True)
    tied = scores == best
    counts = ((scores > best).sum(1), tied.sum(1), (tied & same).sum(1))
    return [expected(*(int(x) for x in found)) for found in zip(*counts, strict=True)]


def _means(found: Sequence[tuple[tuple[float, ...], float]]) -> dict[str, float]:
    if not found:
        return {}
    recall = np.mean([each for each, _ in found], axis=0)
    out = {f"R@{k}": 100 * float(value) for k, value in zip(KS, recall, strict=True)}
    out["MRR"] = 100 * float(np.mean([reciprocal for _, reciprocal in found]))
    return {name: round(value, 3) for name, value in out.items()}
