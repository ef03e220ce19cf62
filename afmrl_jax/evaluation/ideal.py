"""What a perfect model could reach on a catalogue, where whoever made it knows."""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.data.marketplace.cache import IDEAL, read_ideal


def ideal_values(folder: Path | None, listings: int) -> dict[str, dict[str, float]]:
    """The ideal of each task and metric, in percent; empty if the catalogue does not say.

    Args:
        folder: the catalogue's, with `ideal.json` in it or not.
        listings: how many are evaluated: the ideal of others would be another one.

    Raises:
        CatalogueError: the file is broken.
    """
    path = None if folder is None else folder / IDEAL
    if path is None or not path.is_file():
        return {}
    found = read_ideal(path.parent)
    if found.gallery != listings:
        return {}
    return {name: values["ideal"] for name, values in found.tasks.items() if "ideal" in values}
