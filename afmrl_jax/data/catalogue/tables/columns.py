"""Columns under other names: what `--columns title=name,product_id=sku` says, and does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from afmrl_jax.data.catalogue.schema import COLUMNS, MORE_IMAGES, SHOWN
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.json_files import checked, parse_json

NAMED = 40
"""How many columns of a file a message names."""


def parse_columns(text: str | None) -> dict[str, str]:
    """A map of columns, by the names of a listing's.

    Args:
        text: pairs `OURS=THEIRS` separated by commas, or an object of JSON if a name has a comma.

    Raises:
        ConfigError: it is neither, or names no column of a listing.

    Example:
        >>> parse_columns("title=Product name, product_id=sku")
        {'title': 'Product name', 'product_id': 'sku'}
    """
    text = (text or "").strip()
    if text.startswith("{"):
        found = checked(
            dict[str, str],
            parse_json(text, "--columns", error=ConfigError),
            "--columns",
            error=ConfigError,
        )
        pairs = list(found.items())
    else:
        parts = [part.partition("=") for part in text.split(",")] if text else []
        wrong = next((ours for ours, sign, theirs in parts if not (sign and theirs.strip())), None)
        if wrong is not None:
            raise ConfigError(
                f"--columns: {wrong.strip()[:SHOWN]!r} is no pair; write "
                "title=name,product_id=sku, or an object of JSON if a name has a comma"
            )
        pairs = [(ours.strip(), theirs.strip()) for ours, _, theirs in parts]
    for ours, theirs in pairs:
        if ours not in COLUMNS and ours not in MORE_IMAGES:
            raise ConfigError(
                f"--columns: a listing has no column {ours[:SHOWN]!r} to take {theirs[:SHOWN]!r} "
                f"for; it has {', '.join(COLUMNS)}, {MORE_IMAGES[0]} to {MORE_IMAGES[-1]}"
            )
    if len(dict(pairs)) < len(pairs):
        raise ConfigError("--columns names a column twice; name each once")
    return dict(pairs)


def require_columns(columns: Mapping[str, str], there: Sequence[str], path: Path) -> None:
    """Check that a file has the columns that a map names.

    Raises:
        ConfigError: it lacks one; the message has those there are.
    """
    missing = [theirs for theirs in columns.values() if theirs not in there]
    if missing:
        raise ConfigError(
            f"--columns: {path} has no column {missing[0][:SHOWN]!r}; it has {listed(there)}"
        )


def listed(names: Sequence[str]) -> str:
    """The names of columns for a message."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(name[:SHOWN] for name in names[:NAMED]) or "none") + more


def renamed(row: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """A row under the names of a listing's columns; a column that a map replaces is left out."""
    if not columns:
        return row
    taken = set(columns.values()) | columns.keys()
    found = {name: value for name, value in row.items() if name not in taken}
    return found | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
