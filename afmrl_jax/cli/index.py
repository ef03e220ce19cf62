"""Change, shrink, describe and export an embedded catalogue: `afmrl index add`.

Changes are written to a log in the folder, and are on its disk before the command says so. One
process may write at a time; `afmrl serve` holds the folder it serves, and takes changes by HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from afmrl_jax.cli.command import Command
from afmrl_jax.errors import ConfigError
from afmrl_jax.inference import annotate as serving
from afmrl_jax.inference.shipped import models_of
from afmrl_jax.runs.living.export import Target, export_index
from afmrl_jax.runs.living.maintenance import compact, read_ids, remove_listings, stats
from afmrl_jax.runs.living.writing import add_listings
from afmrl_jax.runtime.terminal import printable


@dataclass(frozen=True)
class Add:
    """Add the listings of a catalogue; those with an id of the index replace it.

    Only what has another title or picture is embedded. A killed command is simply repeated.
    """

    run: Path
    """Run directory that embedded the index, or `demo-weights`."""
    index: Path
    """What `afmrl embed` wrote."""
    catalogue: str
    """Folder with listings.jsonl, .parquet or .csv, a store, any CSV, or `hf://user/set#split`."""
    columns: str | None = None
    """Which columns of a table are which, as in `--columns title=name,product_id=sku`."""
    attributes: Path | None = None
    """Attributes from `afmrl annotate`, for an index that was embedded with such a file."""
    skip_bad: bool = False
    """Skip unusable records, counted and listed, instead of stopping."""

    def execute(self) -> None:
        """Run the command."""
        catalogue = serving.read(
            self.catalogue, "all", skip_bad=self.skip_bad, columns=self.columns
        )
        found = add_listings(models_of(self.run), catalogue, self.index, attributes=self.attributes)
        print(
            f"{self.index}: {found.embedded} embedded, {found.rewritten} with other columns only, "
            f"{found.same} unchanged"
        )


@dataclass(frozen=True)
class Remove:
    """Remove listings by id; if one is unknown, none is removed."""

    index: Path
    """What `afmrl embed` wrote."""
    ids: tyro.conf.Positional[tuple[str, ...]] = field(default=())
    """Listing ids."""
    file: Path | None = None
    """More ids, one a line."""

    def execute(self) -> None:
        """Run the command."""
        ids = [*self.ids, *([] if self.file is None else read_ids(self.file))]
        if not ids:
            raise ConfigError("give ids to remove, or --file with one a line")
        print(f"{self.index}: {remove_listings(self.index, ids)} removed")


@dataclass(frozen=True)
class Compact:
    """Write the index anew with its changes, so that it is read and searched faster."""

    index: Path
    """What `afmrl embed` wrote."""

    def execute(self) -> None:
        """Run the command."""
        print(f"{self.index}: {compact(self.index)} listings")


@dataclass(frozen=True)
class Stats:
    """Say what an index holds, and how much of it is still in the log."""

    index: Path
    """What `afmrl embed` wrote."""
    as_json: bool = False
    """Print a JSON object."""

    def execute(self) -> None:
        """Run the command."""
        found = stats(self.index)
        if self.as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} ({count})" for key, count in value.items()) or "none"
            print(printable(f"{name:12s} {'none' if value is None else value}"))


@dataclass(frozen=True)
class Export:
    """Write vectors, ids, titles, attributes and carried columns for another search engine.

    Each needs its client: `pip install 'afmrl-jax[faiss]'`, `[qdrant]` or `[lancedb]`; Parquet
    needs none.
    """

    index: Path
    """What `afmrl embed` wrote."""
    out: Path
    """File (Parquet) or folder to write; it must not exist."""
    to: Target = "parquet"
    """Which engine. Qdrant's folder is a local collection that its client opens by path."""

    def execute(self) -> None:
        """Run the command."""
        print(f"{self.out}: {export_index(self.index, self.out, self.to)} listings")


COMMANDS: dict[str, Callable[..., Command]] = {
    "add": Add,
    "remove": Remove,
    "compact": Compact,
    "stats": Stats,
    "export": Export,
}


def parsed(arguments: list[str]) -> Command:
    """The command that the arguments after `afmrl index` describe."""
    found: Command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="afmrl index", description=__doc__, args=arguments
    )
    return found
