"""One catalogue, or two of different shops one after the other, under names that do not meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.data.catalogue.schema import IMAGES

KINDS = (
    ("listing_id",),
    ("product_id", "duplicate_of"),
    ("family_id",),
    ("duplicate_group",),
)
"""Columns with names of one kind: a listing that is a duplicate names a product."""


@dataclass(frozen=True)
class JoinedCatalogue:
    """The listings of some catalogues in a row.

    What two shops call `17` are two things: a name of a later catalogue that an earlier one has is
    changed (`17~2`), in every column in which it stands.
    """

    parts: tuple[Catalogue, ...]

    @property
    def name(self) -> str:
        """The names of the catalogues."""
        return "+".join(x.name for x in self.parts)

    @cached_property
    def _renamed(self) -> list[dict[str, dict[str, str]]]:
        """New names of each catalogue, by column."""
        out: list[dict[str, dict[str, str]]] = [{} for _ in self.parts]
        for columns in KINDS:
            taken = set[str]()
            for part, renamed in zip(self.parts, out, strict=True):
                own = dict.fromkeys(
                    x for name in columns for x in part.column(name) if x is not None
                )
                met, new = taken & own.keys(), dict[str, str]()
                taken |= own.keys()
                for x in own:
                    if x in met:
                        new[x] = free_name(x, taken)
                        taken.add(new[x])
                renamed |= dict.fromkeys(columns, new)
        return out

    def column(self, name: str) -> list[Any]:
        """One field of every listing."""
        out = list[Any]()
        for part, renamed in zip(self.parts, self._renamed, strict=True):
            new: Mapping[str, str] = renamed.get(name, {})
            out += [new.get(x, x) if new else x for x in part.column(name)]
        return out

    def place(self, part: int, listing_id: str) -> int | None:
        """Where a listing is, by its id in its own catalogue; None if that has none of the name."""
        return self._places[part].get(listing_id)

    @cached_property
    def _places(self) -> list[dict[str, int]]:
        out, begin = [], 0
        for part in self.parts:
            out.append({x: begin + n for n, x in enumerate(part.column("listing_id"))})
            begin += len(part)
        return out

    def rows(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Every listing as a raw record, pictures as bytes, and where it comes from."""
        for part, renamed in zip(self.parts, self._renamed, strict=True):
            for listing in part.listings:
                names = {x: new.get(getattr(listing, x)) for x, new in renamed.items()}
                changed: dict[str, Any] = {x: y for x, y in names.items() if y is not None}
                where = f"{part.name}: listing {listing.listing_id!r}"
                yield where, record_of(replace(listing, **changed))


def free_name(name: str, taken: set[str]) -> str:
    """The name with the first number that makes it new.

    Example:
        >>> free_name("sku-7", {"sku-7", "sku-7~2"})
        'sku-7~3'
    """
    number = 2
    while f"{name}~{number}" in taken:
        number += 1
    return f"{name}~{number}"


def record_of(listing: Listing) -> dict[str, object]:
    """The raw record from which `to_listing` makes this listing, pictures as bytes.

    Raises:
        CatalogueError: a picture cannot be read.
    """
    pictures: Sequence[bytes] = [listing.read_image_bytes(n) for n in range(len(listing.pictures))]
    apart = ("image", "more_images", "extra")
    own = {x.name: getattr(listing, x.name) for x in fields(listing) if x.name not in apart}
    more = {IMAGES: pictures[1:]} if pictures[1:] else {}
    return {**(listing.extra or {}), **own, "image": pictures[0], **more}
