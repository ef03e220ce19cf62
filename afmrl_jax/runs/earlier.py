"""What `afmrl embed --update` takes over from an embedded catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afmrl_jax.errors import RunError
from afmrl_jax.retrieval.index import as_float, stored_vectors
from afmrl_jax.retrieval.index_file import IndexFile
from afmrl_jax.runs.embedded import INDEX, About, EmbeddedListings, EmbeddedThumbnails

ANEW = "leave --update out to embed everything anew"


@dataclass(frozen=True)
class Earlier:
    """An embedded catalogue that fits the embedder and the settings."""

    folder: Path
    about: About
    place: dict[str, int]
    """The place of each listing, by id."""
    contents: list[str]
    """`content_of`, by place."""
    texts: list[str | None]
    """Attributes, by place."""
    stored: np.ndarray
    """The vectors as they are stored, mapped."""
    pictures: EmbeddedThumbnails | None
    places: list[Any]
    """Of their thumbnails in their file; empty if there is none."""

    @classmethod
    def read(cls, folder: Path, wanted: About, *, strict: bool) -> Earlier:
        """Read and check a folder that `embed_catalogue` wrote.

        Args:
            folder: where.
            wanted: what it will be after the update.
            strict: refuse another index than the wanted one.

        Raises:
            RunError: it is damaged, or older, or of another embedder, system or settings.
        """
        about = About.read(folder)
        if not about.format:
            raise RunError(f"{folder} was written by an older version; {ANEW}")
        differing = [
            (name, found, other)
            for name, found, other in (
                ("system", about.system, wanted.system),
                ("embedder", about.embedder, wanted.embedder),
                ("settings of pictures and texts", about.reads, wanted.reads),
                ("index", about.settings, wanted.settings if strict else about.settings),
            )
            if found != other
        ]
        if differing:
            name, found, other = differing[0]
            raise RunError(f"{folder} has another {name}: {found}, not {other}; {ANEW}")
        index = IndexFile.read(folder / INDEX, embedder=wanted.embedder)
        listings = EmbeddedListings(folder, index.ids)
        lines = [listings[n] for n in range(len(listings))]
        return cls(
            folder,
            about,
            {x: n for n, x in enumerate(index.ids)},
            [str(x.get("content")) for x in lines],
            [x.get("attributes") for x in lines],
            stored_vectors(folder / INDEX, index),
            None if about.thumbnails is None else EmbeddedThumbnails(folder),
            [x.get("thumbnail") for x in lines] if about.thumbnails is not None else [],
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.stored.shape[1])

    def require_generator(self, writer: str) -> None:
        """Check that attributes come from the same generator.

        Raises:
            RunError: they came from another one, or from a file.
        """
        if self.about.attributes != writer:
            raise RunError(
                f"{self.folder} has attributes of {self.about.attributes}, not of the generator "
                f"{writer}; give them with --attributes, or {ANEW}"
            )

    def attributes(self, ids: Sequence[str], contents: Sequence[str]) -> dict[str, str]:
        """Attributes by listing id, of the listings with the same title and picture as then."""
        found: dict[str, str] = {}
        for listing_id, content in zip(ids, contents, strict=True):
            at = self.place.get(listing_id)
            if at is not None and self.contents[at] == content:
                text = self.texts[at]
                if text is not None:
                    found[listing_id] = text
        return found

    def place_of(self, listing_id: str, content: str, text: str | None) -> int | None:
        """The place of an unchanged listing; None for a new or changed one."""
        at = self.place.get(listing_id)
        same = at is not None and (self.contents[at], self.texts[at]) == (content, text)
        return at if same else None

    @property
    def identity(self) -> str:
        """A hash of the folder."""
        return self.about.identity

    def gone(self, ids: Sequence[str]) -> int:
        """How many listings are no longer among these."""
        return len(self.place.keys() - set(ids))

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        """float32 [n d]."""
        return as_float(self.stored[places])

    def thumbnail(self, listing_id: str, content: str, side: int) -> bytes | None:
        """The small picture of a listing of the same content, if there is one of that size."""
        at = self.place.get(listing_id)
        if at is None or self.contents[at] != content or self.about.thumbnails != side:
            return None
        assert self.pictures is not None, "a folder with a size has the file"
        return self.pictures.of({"thumbnail": self.places[at]})
