"""From a raw record to a listing: which columns there are, and what is wrong with a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from afmrl_jax.data.catalogue.records import ROLES, SPLITS, Listing, Problem
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.files import is_local

REQUIRED = ("listing_id", "product_id", "title", "image")
OPTIONAL_TEXT = (
    "category", "oracle", "seller", "split", "family_id", "duplicate_of", "duplicate_group", "role",
)  # fmt: skip
_SEPARATORS = str.maketrans({";": ",", ":": " ", "\n": " "})
"""What separates attributes in a list, and its replacement inside an attribute."""


def _text(row: Mapping[str, object], name: str) -> str:
    if row.get(name) is None:
        raise CatalogueError(f"the column {name!r} is missing or empty; add it")
    value = row[name]
    if not isinstance(value, str | int):
        raise CatalogueError(f"{name!r} is a {type(value).__name__}; write text")
    value = str(value).strip()
    if not value:
        raise CatalogueError(f"{name!r} is empty; write one")
    return value


def problem_of(error: CatalogueError, row: Mapping[str, object], where: str, file: str) -> Problem:
    """What is wrong with a record, from an error of the form "what is wrong; the remedy".

    Args:
        error: from `to_listing`, or about the listing's picture.
        row: the record, which may have a listing id.
        where: its place in the file.
        file: the file that holds it.
    """
    what, _, remedy = str(error).rpartition("; ")
    label = row.get("listing_id")
    record = f"listing {label!r} ({where})" if label else where
    return Problem(record, file, what, remedy)


def to_listing(row: Mapping[str, object], folder: Path) -> Listing:
    """A record as a listing.

    Raises:
        CatalogueError: "what is wrong; the remedy".
    """
    values = {name: _text(row, name) for name in REQUIRED[:3]}
    for name in OPTIONAL_TEXT:
        if row.get(name) is not None and str(row[name]).strip():
            values[name] = _text(row, name)
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise CatalogueError(f"unknown split {values['split']!r}; use one of {', '.join(SPLITS)}")
    if values.get("role", ROLES[0]) not in ROLES:
        raise CatalogueError(f"unknown role {values['role']!r}; use one of {', '.join(ROLES)}")
    return Listing(
        image=_image(row, folder), attributes=_attributes(row.get("attributes")), **values
    )


def _image(row: Mapping[str, object], folder: Path) -> bytes | str:
    image = row.get("image")
    if isinstance(image, bytes) and image:
        return image
    name = _text(row, "image")
    path = folder / name
    # A remote folder has no links to follow.
    local = is_local(folder)
    if not (path.resolve().is_relative_to(folder.resolve()) if local else ".." not in path.parts):
        raise CatalogueError(
            f"picture {name!r} is outside the catalogue folder; copy it into images/"
        )
    if not path.is_file():
        raise CatalogueError(f"picture {name!r} does not exist; add it or correct the name")
    return str(path)


def _attributes(value: object) -> dict[str, str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise CatalogueError(
                "'attributes' is text but not JSON; write an object of keys and values"
            ) from error
    if isinstance(value, list) and all(isinstance(x, tuple) for x in value):
        # A Parquet map comes as pairs.
        value = dict(value)
    if not isinstance(value, Mapping):
        raise CatalogueError("'attributes' is not an object; write key and value pairs")
    out = {}
    for key, content in value.items():
        if content is None or not str(content).strip():
            continue
        text = [str(part).translate(_SEPARATORS).strip() for part in (key, content)]
        if not all(text):
            raise CatalogueError("'attributes' has an empty key; name every attribute")
        out[text[0].lower()] = text[1]
    return out or None
