"""Examples of a raw folder for a TFDS builder, and the rows of a dataset that a builder wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.picture_check import checked_pictures
from afmrl_jax.data.catalogue.published.reading import Layout
from afmrl_jax.data.catalogue.records import Problem, Report, Row
from afmrl_jax.data.catalogue.schema import problem_of, to_listing
from afmrl_jax.data.catalogue.tfds_examples import AGAIN, from_example, to_example
from afmrl_jax.errors import CatalogueError


def stored_rows(
    source: Sequence[Mapping[str, bytes]], report: Report | None = None, file: str = "dataset"
) -> Iterator[Row]:
    """The rows of a stored dataset, in the order of their hashes.

    Args:
        source: `builder.as_data_source(split="listings")` of one of our builders.
        report: called with each example that cannot be read; by default the first is an error.
        file: the path that problems are reported under.

    Raises:
        CatalogueError: an example cannot be read, and there is no `report`.
    """
    for number in range(len(source)):
        where = f"example {number}"
        try:
            row = from_example(source[number])
        except Exception as error:  # Of ArrayRecord, protobuf, TFDS, or decoding.
            problem = Problem(where, file, f"it cannot be read ({error})", AGAIN)
            if report is None:
                raise CatalogueError(str(problem)) from error
            report(problem)
            continue
        yield where, row


def examples(
    layout: Layout, folder: Path, report: Report, **options: object
) -> Iterator[tuple[str, dict[str, str | bytes]]]:
    """Listing id and example of every usable row of a raw folder; the others go to `report`.

    Args:
        layout: of the folder.
        folder: the raw folder.
        report: called with each problem.
        options: of the layout's `rows`.
    """
    for where, row in layout.rows(folder, report, **options):
        try:
            listing = to_listing(row, folder)
            pictures = checked_pictures(listing, decoded=False)
        except CatalogueError as error:
            report(problem_of(error, row, where, str(folder)))
            continue
        yield listing.listing_id, to_example(listing, pictures)
