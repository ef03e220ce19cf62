"""From listings to rows and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from afmrl_jax.config import ImageConfig, TextBudget
from afmrl_jax.data.batching import collate as batches
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import PatchStore, Row
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.data.batching.row_packing import RowPacker
from afmrl_jax.data.batching.tokenizer import Tokenizer
from afmrl_jax.data.batching.vision_cache import CachedPictures
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.types import Modality


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Turns listings into rows: tokenizer, shapes and the pictures of one list of listings."""

    listings: Sequence[Listing]
    tokenizer: Tokenizer
    image: ImageConfig
    text: TextBudget
    pictures: PatchStore | CachedPictures
    host: HostShare = dataclasses.field(default_factory=HostShare)
    """The process whose pictures are decoded."""
    shown: Modality = "both"
    """What the generator's prompts show of a listing."""

    @classmethod
    def of(
        cls,
        listings: Sequence[Listing],
        tokenizer: Tokenizer,
        image: ImageConfig,
        text: TextBudget,
        host: HostShare | None = None,
    ) -> RowBuilder:
        """A builder with an empty picture store, for one process or for one of several."""
        host = host or HostShare()
        store = PatchStore(listings, image, deferred=not host.whole)
        return cls(listings, tokenizer, image, text, store, host)

    def showing(self, shown: Modality) -> RowBuilder:
        """This builder, with no more than `shown` in the generator's prompts."""
        return dataclasses.replace(self, shown=shown)

    def picture(self, index: int) -> tuple[Patches, ...]:
        """The pictures of listing `index`, `image.max_pictures` at most, without bad ones if those
        are left out.
        """
        found = (self.pictures.at(index, n) for n in range(self.pictures.count(index)))
        return tuple(x for x in found if x is not None)

    def bad_pictures(self, indices: Iterable[int]) -> int | None:
        """How many pictures of a batch's listings were left out, if that may happen."""
        return None if self.image.bad_pictures == "fatal" else self.pictures.bad(indices)

    def embedder(
        self, index: int, attributes: str | None, *, title: bool = True, picture: bool = True
    ) -> Row:
        """Embedder row of listing `index`."""
        return prompts.embedder_row(
            self.tokenizer,
            self.text,
            self.image,
            title=self.listings[index].title if title else None,
            attributes=attributes,
            pictures=self.picture(index) if picture else (),
        )

    def prompt(self, index: int, title: str | None = None) -> Row:
        """Generator prompt of listing `index`, with another title if one is given; see `shown`."""
        own = self.listings[index].title if title is None else title
        return prompts.generator_prompt(
            self.tokenizer,
            self.text,
            self.image,
            title=None if self.shown == "image" else own,
            pictures=() if self.shown == "text" else self.picture(index),
        )

    def packer(self, samples: Iterable[Sequence[Row]], shares: int) -> RowPacker:
        """Packs the rows of batches like the samples, for `shares` devices; see `RowPacker.of`."""
        lengths = [[len(row.tokens) for row in rows] for rows in samples]
        return RowPacker.of(
            lengths, self.tokenizer, self.image, self.text, shares=shares, host=self.host
        )

    def batch(
        self,
        rows: Sequence[Row],
        length: int | None = None,
        *,
        with_patches: bool = True,
        side: Literal["right", "left"] = "right",
    ) -> batches.VLBatch:
        """Rows padded to the smallest bucket, or to `length`; see `collate`."""
        if length is None:
            length = batches.bucket_length(max(len(row.tokens) for row in rows), self.text)
        return batches.collate(
            rows,
            self.tokenizer,
            self.image,
            length,
            with_patches=with_patches,
            side=side,
            host=self.host,
        )
