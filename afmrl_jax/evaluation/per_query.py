"""The values of single queries, kept with an evaluation so that two runs can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afmrl_jax.data.catalogue.records import Catalogue, Listing
from afmrl_jax.errors import RunError
from afmrl_jax.evaluation.tasks import PerQuery
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.json_files import checked, parse_json

FORM = 1
REMEDY = "delete it and evaluate the run again"
FOLDER = "evaluations"
"""Folder next to `evaluation.json`."""


@dataclass(frozen=True)
class QueryValues:
    """The values of every evaluated listing under every system of a run."""

    catalogue: str
    split: str
    fingerprint: str
    """Of the evaluated listings, including pictures."""
    listing_ids: tuple[str, ...]
    families: tuple[str, ...]
    systems: Mapping[str, PerQuery]
    """By system and `task.metric`, float64 [n], fractions of 1; NaN for listings not queried."""

    @classmethod
    def of(
        cls,
        catalogue: str,
        split: str,
        listings: Sequence[Listing],
        systems: Mapping[str, PerQuery],
    ) -> QueryValues:
        """The values of some listings.

        Args:
            catalogue: its name.
            split: what of it was judged.
            listings: the judged listings, n of them.
            systems: by system and metric, [n] each.
        """
        return cls(
            catalogue=catalogue,
            split=split,
            fingerprint=Catalogue(catalogue, listings).fingerprint,
            listing_ids=tuple(x.listing_id for x in listings),
            families=tuple(x.group for x in listings),
            systems=systems,
        )

    @property
    def name(self) -> str:
        """File name of the values."""
        return f"per_query-{self.fingerprint}.parquet"

    def system(self, name: str | None, where: str) -> tuple[str, PerQuery]:
        """The values of a system; by default the last one.

        Raises:
            RunError: there is no such system.
        """
        if name is not None and name not in self.systems:
            raise RunError(f"{where} has no system {name!r}; choose from {', '.join(self.systems)}")
        chosen = name or list(self.systems)[-1]
        return chosen, self.systems[chosen]


def write_query_values(folder: Path, values: QueryValues) -> Path:
    """Write a Parquet file: a row for each system and listing, a column for each metric.

    Args:
        folder: where; the name of the file comes from the judged listings.
        values: what to write.
    """
    names = list(dict.fromkeys(key for each in values.systems.values() for key in each))
    count = len(values.listing_ids)
    columns: dict[str, Sequence[object] | np.ndarray] = {
        "system": [name for name in values.systems for _ in range(count)],
        "listing_id": list(values.listing_ids) * len(values.systems),
        "family": list(values.families) * len(values.systems),
    }
    missing = np.full(count, np.nan)
    for key in names:
        columns[key] = np.concatenate([each.get(key, missing) for each in values.systems.values()])
    about = {
        "form": FORM,
        "catalogue": values.catalogue,
        "split": values.split,
        "fingerprint": values.fingerprint,
        "systems": {name: list(each) for name, each in values.systems.items()},
    }
    table = pa.table(columns).replace_schema_metadata({"afmrl": json.dumps(about)})
    with atomic_path(folder / values.name) as temporary:
        pq.write_table(table, temporary)
    return folder / values.name


@dataclass(frozen=True)
class _About:
    """What a file says about itself."""

    form: int
    catalogue: str
    split: str
    fingerprint: str
    systems: dict[str, list[str]]


@dataclass(frozen=True)
class _Form:
    form: int


def read_query_values(path: Path) -> QueryValues:
    """What `write_query_values` wrote.

    Raises:
        RunError: the file is missing or invalid.
    """
    if not path.is_file():
        raise RunError(f"there are no per-query values {path}; evaluate the run again")
    try:
        table = pq.read_table(path)
        raw = (table.schema.metadata or {})[b"afmrl"]
    # A flipped bit in a page is an OSError or one of Arrow's own, depending on where it is.
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error
    found = parse_json(raw, path, remedy=REMEDY)
    if checked(_Form, found, path, remedy=REMEDY).form != FORM:
        raise RunError(f"{path} has the format of another version; evaluate the run again")
    about = checked(_About, found, path, remedy=REMEDY)
    count = table.num_rows // max(len(about.systems), 1)
    if count * len(about.systems) != table.num_rows:
        raise _broken(path, f"{table.num_rows} rows of {len(about.systems)} systems")
    try:
        systems = {
            name: {key: _column(table, key, place * count, count) for key in keys}
            for place, (name, keys) in enumerate(about.systems.items())
        }
        listing_ids, families = (
            tuple(map(str, table[name].slice(0, count).to_pylist()))
            for name in ("listing_id", "family")
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error
    return QueryValues(
        catalogue=about.catalogue,
        split=about.split,
        fingerprint=about.fingerprint,
        listing_ids=listing_ids,
        families=families,
        systems=systems,
    )


def _column(table: pa.Table, key: str, begin: int, count: int) -> np.ndarray:
    if not pa.types.is_float64(table[key].type):
        raise TypeError(f"{key} has type {table[key].type}")
    return np.asarray(table[key].slice(begin, count).to_numpy())


def _broken(path: Path, reason: object) -> RunError:
    return RunError(f"{path} contains no per-query values ({reason}); {REMEDY}")
