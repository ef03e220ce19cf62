"""The few shapes that a service computes in, each compiled before it is ready.

A run's own batches choose among many lengths and numbers of picture bins, which pays over a
catalogue. A service has a length for words, a longer one for words with attributes, and one with
pictures, each for one row and for a whole batch, so that no request waits for a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.collate import Row, bucket_length
from afmrl_jax.data.catalogue.pictures import open_picture
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError, InputError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.generator import Generator
from afmrl_jax.inference.inputs import Input, rows_of

Kind = Literal["words", "attributed", "picture"]
KINDS: tuple[Kind, ...] = ("words", "attributed", "picture")


@dataclass(frozen=True)
class Prepared:
    """An input whose picture is decoded and whose tokens are counted."""

    kind: Kind
    row: Row


@dataclass(frozen=True)
class FixedShapes:
    """An embedder and a generator whose programs are few."""

    embedder: Embedder
    batch: int
    """Rows of a whole batch."""

    @cached_property
    def lengths(self) -> dict[Kind, int]:
        """Tokens of a row, by kind: the shortest of the run's that hold any."""
        text, image = self.embedder.text, self.embedder.image
        builder = rows_of([Input("word " * 1000)], self.embedder.tokenizer, self._image, text)
        words = len(builder.embedder(0, None, picture=False).tokens)
        attributed = words + text.max_attribute_tokens + 1
        # Each picture stands between two marks.
        pictured = attributed + image.bin_patches // image.merge_size**2 + 2 * image.max_pictures
        longest = text.buckets[-1]
        return {
            "words": bucket_length(words, text),
            "attributed": bucket_length(min(attributed, longest), text),
            "picture": bucket_length(min(pictured, longest), text),
        }

    @property
    def _image(self) -> ImageConfig:
        # As many bins of patches as rows, whatever the pictures.
        return replace(self.embedder.image, pack_shares=(1.0,))

    @cached_property
    def builders(self) -> dict[Kind, RowBuilder]:
        """What makes batches of rows, by kind."""
        return {
            kind: rows_of(
                [],
                self.embedder.tokenizer,
                self._image,
                replace(self.embedder.text, buckets=(length,)),
            )
            for kind, length in self.lengths.items()
        }

    @cached_property
    def generator(self) -> Generator:
        """The generator, whose prompts have one length.

        Raises:
            RunError: the embedder has none.
        """
        found = self.embedder.generator
        text = replace(found.text, buckets=found.text.buckets[-1:])
        return replace(found, text=text, image=replace(found.image, pack_shares=(1.0,)))

    def prepare(self, x: Input, pixels: int) -> Prepared:
        """Decode and tokenize an input, so that the device's thread need not.

        Args:
            x: with encoded bytes as its picture, if it has one.
            pixels: most that the picture may have.

        Raises:
            InputError: the picture cannot be used, or the row is too long.
        """
        pictures, most = (x.picture, *x.more), self.embedder.image.max_pictures
        if len(pictures) > most:
            raise InputError(f"{len(pictures)} pictures; the models read {most} of a listing")
        for picture in pictures:
            if isinstance(picture, bytes):
                _require_pixels(picture, pixels)
        builder = rows_of([x], self.embedder.tokenizer, self.embedder.image, self.embedder.text)
        try:
            row = builder.embedder(
                0, x.attributes, title=x.text is not None, picture=x.picture is not None
            )
        except CatalogueError as error:
            cause = error.__cause__ if isinstance(error.__cause__, CatalogueError) else error
            raise InputError(str(cause)) from error
        kind: Kind = "words"
        if row.pictures:
            kind = "picture"
        elif len(row.tokens) > self.lengths["words"]:
            kind = "attributed"
        if len(row.tokens) > self.lengths[kind]:
            raise InputError(
                f"{len(row.tokens)} tokens, more than {self.lengths[kind]}; give less text"
            )
        return Prepared(kind, row)

    def embed(self, kind: Kind, rows: list[Row]) -> np.ndarray:
        """Unit vectors of rows of a kind, float32 [n d]; at most a batch."""
        size = 1 if len(rows) == 1 else self.batch
        encoder = replace(self.embedder.encoder, batch_size=size)
        return encoder.embed_rows(self.builders[kind], rows)


def _require_pixels(picture: bytes, most: int) -> None:
    try:
        width, height = open_picture(picture).size
    except CatalogueError as error:
        raise InputError(str(error)) from error
    if width * height > most:
        raise InputError(
            f"the picture has {width} x {height} pixels, more than {most:,}; scale it down"
        )
