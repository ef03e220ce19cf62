"""Reads the files of a raw folder with the workers of an Apache Beam pipeline.

For catalogues too large for one machine; needs the extra `beam`. Every input file is read by one
worker, so a catalogue should be in more files than there are workers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epath

from afmrl_jax.data.catalogue.published import LAYOUTS, shards
from afmrl_jax.data.catalogue.published.examples import examples
from afmrl_jax.data.catalogue.published.reading import Layout
from afmrl_jax.data.catalogue.records import Problem
from afmrl_jax.errors import CatalogueError

if TYPE_CHECKING:
    from apache_beam import PTransform


def read_files(
    layout: Layout,
    folder: Path,
    files: Sequence[Path],
    options: Mapping[str, object],
    *,
    skip_bad: bool = False,
) -> PTransform:
    """A Beam transform that yields (listing id, example) of all files.

    Args:
        layout: of the folder; the workers look it up by its name.
        folder: the raw folder, which every worker must reach under this path.
        files: the files to read, each by one worker.
        options: of the layout's `rows`.
        skip_bad: leave broken records out instead of failing; they are logged, and counted by the
            pipeline as `afmrl/bad_records`.

    Raises:
        CatalogueError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
    except ImportError as error:
        raise CatalogueError(
            "reading with many machines needs Apache Beam; pip install 'afmrl-jax[beam]'"
        ) from error
    read = functools.partial(
        _read_file, layout=layout.name, folder=str(folder), options=dict(options), skip_bad=skip_bad
    )
    return (
        "Files" >> beam.Create([str(x) for x in files])
        # Without it, the runner may fuse listing the files and reading them on one worker.
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(read)
    )


def _read_file(
    file: str, *, layout: str, folder: str, options: Mapping[str, object], skip_bad: bool
) -> Iterator[tuple[str, dict[str, str | bytes]]]:
    from apache_beam.metrics import Metrics

    bad = Metrics.counter("afmrl", "bad_records")

    def report(problem: Problem) -> None:
        if problem.severity != "warning":
            if not skip_bad:
                raise CatalogueError(f"{problem} (skip_bad=True leaves such records out)")
            bad.inc()
        logging.warning("%s", problem)

    found = {**LAYOUTS, shards.LAYOUT.name: shards.LAYOUT}[layout]
    yield from examples(found, epath.Path(folder), report, files=[epath.Path(file)], **options)
