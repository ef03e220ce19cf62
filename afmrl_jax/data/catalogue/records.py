"""Listings and catalogues: what every dataset becomes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import resolve_path
from afmrl_jax.runtime.json_files import read_bytes
from afmrl_jax.runtime.memory_budget import MemoryBudget
from afmrl_jax.types import Plain

MAX_PICTURE = 1 << 28
"""Bytes of the largest picture file that is read."""

MAX_ENCODED = 2 * MAX_PICTURE
"""Bytes of picture files of this machine that all threads of a process hold at once."""
_ENCODED = MemoryBudget(MAX_ENCODED)

SPLITS = ("distill", "train", "reward", "test")
ROLES = ("query", "gallery")


Row = tuple[str, Mapping[str, object]]
"""A raw record: its place in the file, and its columns."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a record of a catalogue."""

    record: str
    """The listing id, or the line if there is none."""
    file: str
    what: str
    remedy: str
    severity: str = "error"
    """`error` or `warning`"""

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.what}; {self.remedy}"


Report = Callable[[Problem], None]
"""Called for each problem; may raise."""


@runtime_checkable
class StoredPicture(Protocol):
    """A picture that is read on demand."""

    def read(self) -> bytes:
        """The encoded picture."""
        ...


Picture = bytes | str | StoredPicture
"""An encoded picture, or its path, or its place in a store."""


@dataclass(frozen=True)
class Listing:
    """One offer of a product."""

    listing_id: str
    product_id: str
    title: str
    image: Picture
    category: str | None = None
    attributes: Mapping[str, str] | None = None
    """True attributes: for distillation and evaluation, never shown to the embedder."""
    oracle: str | None = None
    """Attribute text by a large captioner, if the catalogue has one."""
    seller: str | None = None
    split: str | None = None
    family_id: str | None = None
    duplicate_of: str | None = None
    """True product, if `product_id` is a second id of it: for evaluation, unknown to training."""
    duplicate_group: str | None = None
    """Set where the shop itself knows that several ids are one product: training may use it."""
    role: str | None = None
    """In evaluation: `query` only searches, `gallery` is only searched in; None for both."""
    part: str | None = None
    """Which part of its split, where a catalogue divides one, by family, as splits are. Of
    `reward`, RAR trains on `learn` and is judged on `choose`; of others, such as `report`, it never
    asks anything."""
    extra: Mapping[str, Plain] | None = None
    """What else a shop says, such as price and address: results show it, no model reads it."""
    more_images: tuple[Picture, ...] = ()
    """Further pictures of the same offer. Models read as many as `image.max_pictures` lets them,
    `image` first."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, the first one first."""
        return (self.image, *self.more_images)

    def read_image_bytes(self, place: int = 0) -> bytes:
        """An encoded picture.

        Args:
            place: which one; 0 is the first.

        Raises:
            CatalogueError: its file cannot be read, is larger than `MAX_PICTURE`, or is a pipe or a
                device.
        """
        image = self.pictures[place]
        if isinstance(image, bytes):
            return image
        if not isinstance(image, str):
            return image.read()
        try:
            return read_bytes(
                resolve_path(image),
                limit=MAX_PICTURE,
                error=CatalogueError,
                remedy="restore the file or remove the listing",
            )
        except CatalogueError as error:
            raise CatalogueError(f"listing {self.listing_id!r}: picture {error}") from error

    @contextmanager
    def encoded(self, place: int = 0) -> Iterator[bytes]:
        """An encoded picture for the length of a block, for threads that read many at once.

        A file of this machine waits until `MAX_ENCODED` has room for it.

        Args:
            place: which one; 0 is the first.

        Raises:
            CatalogueError: see `read_image_bytes`.
        """
        with _ENCODED.hold(self._file_size(place)):
            yield self.read_image_bytes(place)

    @contextmanager
    def all_encoded(self, most: int) -> Iterator[tuple[bytes, ...]]:
        """The first encoded pictures, `most` of them; see `encoded`."""
        places = range(min(len(self.pictures), most))
        # More than the budget has would wait forever; such a listing has it to itself.
        size = min(sum(map(self._file_size, places)), MAX_ENCODED)
        with _ENCODED.hold(size):
            yield tuple(map(self.read_image_bytes, places))

    def _file_size(self, place: int) -> int:
        """Bytes of a picture's file as far as they are read; 0 if it is no file here."""
        image = self.pictures[place]
        path = resolve_path(image) if isinstance(image, str) else None
        if not isinstance(path, Path):
            return 0
        try:
            return min(path.stat().st_size, MAX_PICTURE)
        except (OSError, ValueError):  # Reading it says what is wrong.
            return 0

    @property
    def true_product(self) -> str:
        """The product that evaluation counts, even if the listing has a second id of it."""
        return self.duplicate_of or self.product_id

    @property
    def group(self) -> str:
        """The family, or the product if no family is known: splits must not divide it."""
        return f"family {self.family_id}" if self.family_id else f"product {self.product_id}"


class StoredListings(ABC, Sequence[Listing]):
    """Listings that are read on demand."""

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """One field of every listing, without reading the others."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the listings and their pictures, known without reading them."""

    @abstractmethod
    def take(self, chosen: np.ndarray) -> StoredListings:
        """The listings at some positions, int64 [n]."""


@dataclass(frozen=True)
class Catalogue:
    """Listings with unique ids, each in a split, no family in two splits."""

    name: str
    listings: Sequence[Listing]
    skipped: tuple[Problem, ...] = ()
    """Records that `skip_bad` left out."""

    def __len__(self) -> int:
        return len(self.listings)

    def column(self, name: str) -> list[Any]:
        """One field of every listing."""
        if isinstance(self.listings, StoredListings):
            return self.listings.column(name)
        return [getattr(x, name) for x in self.listings]

    def indices(self, *splits: str) -> np.ndarray:
        """Positions of the listings of some splits, int64 [n]."""
        return np.flatnonzero(np.isin(self.column("split"), splits))

    def subset(self, *splits: str) -> Catalogue:
        """The listings of some splits."""
        chosen = self.indices(*splits)
        if isinstance(self.listings, StoredListings):
            return Catalogue(self.name, self.listings.take(chosen))
        return Catalogue(self.name, tuple(self.listings[i] for i in chosen))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that a run may read, pictures included: all but `Listing.extra`."""
        if isinstance(self.listings, StoredListings):
            return self.listings.fingerprint
        digest = hashlib.sha256()
        for x in self.listings:
            fields = [
                x.listing_id, x.product_id, x.title, x.category, dict(x.attributes or {}),
                x.oracle, x.seller, x.split, x.family_id, x.duplicate_of,
            ]  # fmt: skip
            if x.duplicate_group is not None:  # Catalogues without it keep the hash they have.
                fields.append(x.duplicate_group)
            if x.role is not None:
                fields.append(f"role {x.role}")
            if x.part is not None:
                fields.append(f"part {x.part}")
            if x.more_images:
                fields.append(f"pictures {len(x.pictures)}")
            digest.update(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode())
            for place in range(len(x.pictures)):
                digest.update(hashlib.sha256(x.read_image_bytes(place)).digest())
        return digest.hexdigest()[:16]
