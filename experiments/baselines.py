"""What raw pixels, a colour histogram and BM25 over titles reach on a catalogue's test split.

python experiments/baselines.py                       # writes experiments/results/baselines.json
python experiments/baselines.py --catalogue my-shop --result my-shop.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from afmrl_jax.data.catalogue import load_catalogue
from afmrl_jax.evaluation.baselines import run_baselines
from afmrl_jax.files import write_json
from afmrl_jax.runtime import reported


@dataclass(frozen=True)
class Baselines:
    """Which catalogue."""

    catalogue: str = "furniture"
    """`furniture` (embedded) or a folder in the catalogue format."""
    result: Path = Path(__file__).parent / "results" / "baselines.json"


def main(settings: Baselines) -> None:
    """Measure, print, write."""
    listings = load_catalogue(settings.catalogue).subset("test").listings
    found = run_baselines(listings)
    for name, scores in found.items():
        print(f"{name:18s} " + "  ".join(f"{k} {v:5.2f}" for k, v in scores.items()))
    write_json(settings.result, {"catalogue": settings.catalogue, "queries": len(listings)} | found)


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Baselines, description=__doc__))
