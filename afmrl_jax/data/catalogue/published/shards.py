"""Catalogues in many files with our own columns: JSON lines (.gz or not) and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.published.reading import Layout
from afmrl_jax.data.catalogue.records import Report, Row
from afmrl_jax.data.catalogue.tables import json_lines, parquet
from afmrl_jax.data.catalogue.tables import rows as rows_of

ENDS = (*json_lines.FORMAT.ends, *parquet.FORMAT.ends)


def inputs(folder: Path) -> list[Path]:
    """The files of a folder that hold listings."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(ENDS))


def rows(folder: Path, report: Report, *, files: Sequence[Path] | None = None) -> Iterator[Row]:
    """The rows of all files.

    Args:
        folder: names of pictures are relative to it.
        report: called with each broken record, and with files that cannot be read.
        files: of any folder; by default those of this one.
    """
    return rows_of(inputs(folder) if files is None else files, report)


LAYOUT = Layout(
    name="shards",
    description="a catalogue of the user's own, in files of JSON lines or Parquet",
    citation="",
    download=f"give a folder with files that end in {', '.join(ENDS)}",
    inputs=inputs,
    rows=rows,
)
"""Not among the published layouts: it would match any catalogue folder."""
