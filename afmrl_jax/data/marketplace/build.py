"""Draws a whole marketplace into a folder, with several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.config.marketplace import MarketplaceSettings
from afmrl_jax.data.marketplace.ideal import ideal_values, known_of
from afmrl_jax.data.marketplace.plan import Offer, plan
from afmrl_jax.data.marketplace.worker import draw_rows, sellers_of
from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.progress import Progress

LISTINGS = "listings.parquet"
IDEAL = "ideal.json"
ROWS = 1024
"""Rows of a group in the file."""
FEW = 600
"""Listings that one process draws before a second one would have started."""
MOST = 8
"""Processes that are started unless more are asked for."""


def draw_marketplace(
    settings: MarketplaceSettings, folder: Path, *, workers: int | None = None
) -> None:
    """Write a marketplace's listings, and the ideal and the chance of each task on its test split.

    The files do not depend on the number of processes.

    Args:
        settings: what is drawn.
        folder: that exists.
        workers: processes; None: one for each processor, or this one alone for a small catalogue.

    Raises:
        CatalogueError: a process ended before it was done.
    """
    offers = plan(settings)
    if workers is None:
        workers = min(_processors(), MOST) if len(offers) > FEW else 1
    with Progress("marketplace", len(offers)) as progress:
        if workers == 1:
            done = 0

            def drawn(count: int) -> None:
                nonlocal done
                done += count
                progress.update(done)

            table = draw_rows(offers, sellers_of(offers), settings, drawn)
        else:
            table = _by_processes(settings, len(offers), workers, progress)
    pq.write_table(table, folder / LISTINGS, row_group_size=ROWS, compression="zstd")
    ideal = json.dumps(ideal_of(offers, table), indent=1)
    # Not `write_json`, which writes in one process of a job alone.
    (folder / IDEAL).write_text(ideal + "\n", encoding="utf-8")


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ideal_of(offers: Sequence[Offer], table: pa.Table) -> dict[str, object]:
    """The ideal and the chance of each task on the test split."""
    stated = dict(zip(table["listing_id"].to_pylist(), table["stated"].to_pylist(), strict=True))
    test = [x for x in offers if x.split == "test"]
    known = known_of([x.combination for x in test], [stated[x.listing_id].split() for x in test])
    return ideal_values(known, [x.product_id for x in test])


def _by_processes(
    settings: MarketplaceSettings, count: int, workers: int, progress: Progress
) -> pa.Table:
    edges = [count * part // workers for part in range(workers + 1)]
    content = json.dumps(dataclasses.asdict(settings))
    # The package may have come from a place that only this process knows.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    with TemporaryDirectory(prefix="afmrl-marketplace-") as scratch:
        parts = [Path(scratch) / f"{number}.arrow" for number in range(workers)]
        reader, writer = os.pipe()
        started: list[subprocess.Popen[bytes]] = []
        try:
            for number, part in enumerate(parts):
                command = [sys.executable, "-m", "afmrl_jax.data.marketplace.worker", content]
                command += [str(edges[number]), str(edges[number + 1]), str(part)]
                started.append(subprocess.Popen(command, stdout=writer, env=environment))
            os.close(writer)
            writer = -1
            done = 0
            with os.fdopen(reader, closefd=False) as lines:
                for line in lines:
                    done += int(line)
                    progress.update(done)
            for process in started:
                if process.wait() != 0:
                    raise CatalogueError(
                        "a process that draws the marketplace ended before it was done (exit "
                        f"status {process.returncode}); see its message above, and start the "
                        "command again"
                    )
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    process.kill()
                process.wait()
            for end in (reader, writer):
                if end >= 0:
                    os.close(end)
        tables = []
        for part in parts:
            with pa.OSFile(str(part)) as file:
                tables.append(pa.ipc.open_file(file).read_all())
        return pa.concat_tables(tables)
