"""What is wrong with a catalogue, record by record; it is read once, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from afmrl_jax.data.catalogue.census import Census
from afmrl_jax.data.catalogue.load import Look, read_listings
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.catalogue.records import Problem, Report
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.types import JsonObject


def check_catalogue(
    path: str | Path,
    report: Report,
    *,
    look: Look = "decode",
    options: Mapping[str, object] | None = None,
    columns: str | None = None,
) -> JsonObject:
    """Read a whole catalogue and continue after each problem.

    Args:
        path: as for `load_catalogue`.
        report: called with each problem as it is found.
        look: how closely pictures are checked.
        options: of a published layout's reader.
        columns: as for `load_catalogue`.

    Returns:
        Counts of what is usable, and how many listings have each field.
    """
    source = open_rows(path, options, columns)
    with (
        TemporaryDirectory(prefix="afmrl-check-") as folder,
        closing(Census(Path(folder) / "census.sqlite")) as census,
        Progress("catalogue-check", source.count) as progress,
    ):
        if source.store is not None:
            for problem in source.store.verify():
                report(problem)
        looked: Look = "none" if source.trusted else look
        for x in read_listings(source, census, report, look=looked):
            progress.update(x.number)
        try:
            census.refuse(source.file)
            census.draw_splits()
        except CatalogueError as error:
            what, _, remedy = str(error).rpartition("; ")
            report(Problem("catalogue", source.file, what, remedy))
        for problem in census.warnings(source.file):
            report(problem)
        return census.summary()
