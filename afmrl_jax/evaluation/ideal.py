"""What a perfect model could reach on a catalogue, where whoever made it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from afmrl_jax.errors import CatalogueError
from afmrl_jax.runtime.json_files import read_checked

IDEAL = "ideal.json"
REMEDY = "delete it, or make the catalogue again"


@dataclass(frozen=True)
class _Ideal:
    gallery: int
    """Listings it was computed for."""
    tasks: dict[str, dict[str, dict[str, float]]]
    """By task, `ideal`, and metric, in percent."""


def ideal_values(source: Path | str | None, listings: int) -> dict[str, dict[str, float]]:
    """The ideal of each task and metric, in percent; empty if the catalogue does not say.

    Args:
        source: the catalogue's folder, with `ideal.json` in it or not; no other name has one.
        listings: how many are evaluated: the ideal of others would be another one.

    Raises:
        CatalogueError: the file is broken.
    """
    path = None if source is None else Path(source) / IDEAL
    if path is None or not path.is_file():
        return {}
    found = read_checked(path, _Ideal, error=CatalogueError, remedy=REMEDY)
    if found.gallery != listings:
        return {}
    return {name: values["ideal"] for name, values in found.tasks.items() if "ideal" in values}
