"""Pairs from which the embedder learns to read lists, after it has met titles and photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.attributes.text_format import format_attributes, salvaged_pairs
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.images import Patches, erase_patches
from afmrl_jax.data.marketplace.lists import VARIED, canonical, worded
from afmrl_jax.data.marketplace.titles import stated_keys, states
from afmrl_jax.data.marketplace.world import ATTRIBUTES, Combination, others
from afmrl_jax.data.sources.sampler import epoch_indices
from afmrl_jax.data.sources.views import drawn
from experiments.studies.pretrain.pool import PHOTOS, Words
from experiments.studies.pretrain.sources import ViewSource

Told = Literal["nothing", "title", "part", "list", "title and list"]
"""Words of a row. A part of a list states as many attributes as a title, drawn in the same way."""


class Side(NamedTuple):
    """What the rows of one side of the pairs show."""

    photo: bool
    told: tuple[Told, ...]
    """Each row has one of these, all alike probable."""
    twins: bool = False
    """Of both sides, if of one: the batch has half of its products, and of each a twin with its
    titles and photos whose lists say something else of one attribute, which no title states."""


_PHOTO = Side(True, ("nothing",))
_WORDS = Side(False, ("title", "part"))
_TEXT = Side(False, ("title", "part", "list", "title and list"))
_LISTED = Side(True, ("list", "title and list"))
_READ_TWINS = Side(False, ("list", "title and list"), twins=True)
_SEEN_TWINS = Side(True, ("list", "title and list"), twins=True)

VIEWS: Mapping[tuple[Side, Side], float] = {
    (_PHOTO, _WORDS): 0.15,
    (_WORDS, _PHOTO): 0.15,
    (_PHOTO, _PHOTO): 0.05,
    (_WORDS, Side(True, ("title", "part"))): 0.05,
    (_TEXT, _TEXT): 0.05,
    (_TEXT, _LISTED): 0.05,
    (_READ_TWINS, _READ_TWINS): 0.25,
    (_SEEN_TWINS, _SEEN_TWINS): 0.25,
}
"""A photo without its whole list never meets a whole list, and twins have the same photos: the
embedder learns to read all that a list says, and to see no more than titles teach it."""

DEFAULTS = MarketplaceSettings()


class ReadingSource(ViewSource[tuple[Side, Side]]):
    """Two sellers' offers of a product, of which lists tell all that can be seen, or a part."""

    def view(self, step: int) -> tuple[Side, Side]:
        """What queries and targets of a step show."""
        return drawn(step, VIEWS, self.seed)

    def _row(
        self, words: Words, offer: int, seen: tuple[Patches, ...], told: Told, rng: Generator
    ) -> Row:
        own = self.material
        return prompts.embedder_row(
            own.tokenizer,
            own.text,
            own.image,
            title=words.titles[offer] if told in ("title", "title and list") else None,
            attributes=_list(words.lists[offer], told, rng),
            pictures=tuple(erase_patches(x, rng, self.erased, own.image) for x in seen),
        )

    def _rows(self, step: int) -> tuple[list[Row], np.ndarray]:
        rng = np.random.default_rng([self.seed, step, 3])
        pool, view = self.material.pool, self.view(step)
        numbers = epoch_indices(pool.size, self.batch_size, step, self.seed + 2)
        if view[0].twins:
            numbers = numbers[: len(numbers) // 2]
        words = list(map(pool.words, numbers.tolist()))
        if view[0].twins:
            numbers = np.concatenate([numbers, numbers + pool.size])
            words += [_twin(x, rng) for x in words]
        first, rows = rng.integers(PHOTOS, size=len(numbers)), list[Row]()
        for side, offers in zip(view, (first, PHOTOS - 1 - first), strict=True):
            for number, said, offer in zip(numbers.tolist(), words, offers.tolist(), strict=True):
                seen = self.material.picture(number % pool.size, offer) if side.photo else ()
                told = side.told[int(rng.integers(len(side.told)))]
                rows.append(self._row(said, offer, seen, told, rng))
        return rows, numbers


def _list(whole: str, told: Told, rng: Generator) -> str | None:
    """The list of a row, if it has one."""
    if told in ("nothing", "title"):
        return None
    pairs = salvaged_pairs(whole)
    if told != "part":
        return format_attributes(_careless(pairs, rng))
    stated = stated_keys(_values(pairs), DEFAULTS.title_share, rng)
    return format_attributes([(key, word) for key, word in pairs if key in stated])


def _careless(pairs: list[tuple[str, str]], rng: Generator) -> list[tuple[str, str]]:
    """The list as a generator may write it that learned from the marketplace's oracle: without some
    of what the oracle leaves out, and now and then wrong. Between none of that and all of it.
    """
    care, values = float(rng.random()), _values(pairs)
    found: list[tuple[str, str]] = []
    for key, word in pairs:
        left_out, wrong = rng.random(2)
        rate = getattr(DEFAULTS, f"mention_{ATTRIBUTES[key].salience}")
        if left_out < care * (1 - rate):
            continue
        besides = others(key, values)
        if wrong < care * DEFAULTS.oracle_errors and besides:
            word = worded(key, besides[int(rng.integers(len(besides)))], VARIED, rng)
        found.append((key, word))
    return found or pairs


def _twin(words: Words, rng: Generator) -> Words:
    """The same but for one attribute, which is another in all lists."""
    values = _values(salvaged_pairs(words.lists[0]))
    choices = {key: others(key, values) for key in values if key != "type"}
    known = [key for key, besides in choices.items() if besides]
    unsaid = [x for x in known if not any(states(t, x, values[x]) for t in words.titles)]
    # Titles that state everything were never seen; then they are wrong about one attribute.
    keys = unsaid or known
    key = keys[int(rng.integers(len(keys)))]
    other = choices[key][int(rng.integers(len(choices[key])))]
    lists = [
        format_attributes(
            [
                (k, worded(k, other, VARIED, rng) if k == key else word)
                for k, word in salvaged_pairs(text)
            ]
        )
        for text in words.lists
    ]
    return replace(words, lists=tuple(lists))


def _values(pairs: list[tuple[str, str]]) -> Combination:
    return {key: canonical(key, word) or word for key, word in pairs}
