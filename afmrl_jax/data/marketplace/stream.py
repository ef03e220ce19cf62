"""An endless source of pictures and words of the marketplace, for pretraining.

What it shows occurs in no catalogue of any seed: its combinations are in other parts of the hash
(`world.SHARES`), so that a model that knows the world has still to read every test product off its
picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.config.validation import require
from afmrl_jax.data.marketplace.lists import caption, full_list
from afmrl_jax.data.marketplace.photo import encode, take_photo
from afmrl_jax.data.marketplace.sellers import SELLERS, draw_sellers
from afmrl_jax.data.marketplace.titles import write_title
from afmrl_jax.data.marketplace.world import Combination, draw_for, seeded


@dataclass(frozen=True)
class Sample:
    """A product of the stream."""

    photos: tuple[bytes, ...]
    """JPEGs by different sellers."""
    titles: tuple[str, ...]
    """The same sellers' titles, which state a part of the attributes in several languages."""
    captions: tuple[str, ...]
    """Neutral English sentences, each on some of what can be seen."""
    lists: tuple[str, ...]
    """Attribute lists of all that can be seen, in varied words and order."""
    attributes: Combination
    """The truth, with what no photo shows."""


@dataclass(frozen=True)
class Stream:
    """Samples by number, 0 to infinity; each is a function of the seed and its number alone.

    Any number of processes may read it, each its own numbers. The settings say how large pictures
    are, and how titles are written; their numbers of families mean nothing here.
    """

    seed: int
    photos: int = 1
    """Photos, titles, captions and lists of a sample, each by another seller: 20 at most."""
    settings: MarketplaceSettings = field(default_factory=MarketplaceSettings)

    def __post_init__(self) -> None:
        require(
            1 <= self.photos <= len(SELLERS),
            f"a sample has 1 to {len(SELLERS)} photos, one by each seller, found {self.photos}",
        )

    def truth(self, number: int) -> Combination:
        """The attributes of a sample, without drawing it."""
        return self._begun(number)[0]

    def _begun(self, number: int) -> tuple[Combination, np.random.Generator]:
        rng = seeded("stream", self.seed, number)
        return draw_for("stream", rng), rng

    def __getitem__(self, number: int) -> Sample:
        """The sample of a number, from 0 on."""
        truth, rng = self._begun(number)
        settings = self.settings
        photos, titles, captions, lists = [], [], [], []
        for seller in draw_sellers(self.photos, rng):
            picture = take_photo(truth, seller, settings.pixels, settings.badges, rng)
            photos.append(encode(picture, seller.quality))
            title = write_title(truth, seller, settings.title_share, settings.title_synonyms, rng)
            titles.append(title.text)
            captions.append(caption(truth, rng))
            lists.append(full_list(truth, rng))
        return Sample(tuple(photos), tuple(titles), tuple(captions), tuple(lists), truth)
