"""Rows as examples of a TFDS dataset, and back: text and bytes, nothing decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from afmrl_jax.data.catalogue import to_listing
from afmrl_jax.data.images import open_picture
from afmrl_jax.data.published.reading import Layout, Report, Row, text
from afmrl_jax.data.records import Problem
from afmrl_jax.errors import CatalogueError

TEXTS = (
    "listing_id", "product_id", "title", "category", "oracle", "seller", "split", "role",
    "family_id", "duplicate_of", "duplicate_group",
)  # fmt: skip
"""Columns of text; a missing one is stored as the empty text."""
SPLIT = "listings"
"""The one split of the TFDS datasets: which of our splits a listing is in is a column."""


def to_example(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row as it is stored: attributes as JSON, the picture as the bytes of its file.

    Raises:
        CatalogueError: "what is wrong with the record; the remedy".
    """
    picture = to_listing(row, folder).read_image_bytes()
    open_picture(picture)
    attributes = row.get("attributes") or ""
    if attributes and not isinstance(attributes, str):
        attributes = json.dumps(dict(attributes), ensure_ascii=False)
    return {
        **{name: text(row.get(name)) for name in TEXTS},
        "attributes": attributes,
        "image": picture,
    }


def from_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """A stored example as a row, without the columns that are empty."""
    row: dict[str, Any] = {name: _decoded(example[name]) for name in (*TEXTS, "attributes")}
    row = {name: value for name, value in row.items() if value}
    if "attributes" in row:
        row["attributes"] = json.loads(row["attributes"])
    return {**row, "image": bytes(example["image"])}


def stored_rows(source: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows of a stored dataset, in the order of their hashes.

    Args:
        source: of one of our builders, `builder.as_data_source(split=SPLIT)`.
    """
    for number in range(len(source)):
        yield f"example {number}", from_example(source[number])


def examples(
    layout: Layout, folder: Path, report: Report, **options: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Listing id and example of every usable row of a raw folder; the others go to `report`.

    Args:
        layout: of the folder.
        folder: the raw folder.
        report: called with each problem.
        options: of the layout's `rows`.
    """
    for where, row in layout.rows(folder, report, **options):
        try:
            example = to_example(row, folder)
        except CatalogueError as error:
            what, _, remedy = str(error).rpartition("; ")
            label = text(row.get("listing_id"))
            record = f"listing {label!r} ({where})" if label else where
            report(Problem(record, str(folder), what, remedy))
            continue
        yield example["listing_id"], example


def _decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
