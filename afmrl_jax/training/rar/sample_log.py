"""A few sampled attribute lists each so many steps, for a person to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.runtime.files import is_writer, write_text
from afmrl_jax.runtime.json_files import checked, json_text, read_records
from afmrl_jax.training.rar.rollout import Rollout
from afmrl_jax.types import JsonObject

QUERIES = 3
"""Queries of a step that are kept."""


REMEDY = "delete the line; the samples are only for reading"


@dataclass(frozen=True)
class SampledList:
    """An attribute list, what it earned, and the rank at which it found the product."""

    text: str
    reward: float
    rank: float
    malformed: bool


@dataclass(frozen=True)
class SampledQuery:
    """A line of `samples.jsonl`."""

    step: int
    listing_id: str
    title: str
    lists: list[SampledList]


class SampleLog:
    """`samples.jsonl` of a stage: step, listing, and its lists with rewards and ranks."""

    def __init__(self, folder: Path, every: int, builder: RowBuilder):
        self._path = folder / "samples.jsonl"
        self._every = every
        self._builder = builder

    def write(self, step: int, index: np.ndarray, rollout: Rollout) -> None:
        """Keep the first queries of a step that is due."""
        if not is_writer() or (step % self._every and step != 1):
            return
        group = rollout.rewards.shape[1]
        records = [x for x in read_samples(self._path) if x["step"] < step]
        for row, listing in enumerate(index[:QUERIES].tolist()):
            about = self._builder.listings[listing]
            texts = rollout.texts[row * group : (row + 1) * group]
            values = zip(
                texts,
                rollout.rewards[row].tolist(),
                rollout.outcome.rank[row].tolist(),
                rollout.malformed[row].tolist(),
                strict=True,
            )
            records.append(
                {
                    "step": step,
                    "listing_id": about.listing_id,
                    "title": about.title,
                    "lists": [
                        {"text": t, "reward": round(r, 4), "rank": n, "malformed": bad}
                        for t, r, n, bad in values
                    ],
                }
            )
        lines = (json_text(x) + "\n" for x in records)
        write_text(self._path, "".join(lines))


def read_samples(path: Path) -> list[JsonObject]:
    """What was kept, in the order of steps; nothing where there is no file.

    Raises:
        RunError: a whole line is broken; the message names it.
    """
    found = read_records(path, remedy=REMEDY)
    for number, record in enumerate(found, 1):
        checked(SampledQuery, record, f"{path}:{number}", remedy=REMEDY, nan=True)
    return found
