"""Samples of the stream drawn once and kept on disk, for several epochs."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from afmrl_jax.data.catalogue.pictures import open_picture
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.errors import RunError
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.runtime.progress import Progress

SHARD = 500
"""Samples in a file."""
PHOTOS = 2
"""Photos of a sample, by two sellers: what an embedder is to find alike."""


@dataclass(frozen=True)
class Words:
    """What is written about a sample: a text for each photo or more."""

    titles: tuple[str, ...]
    captions: tuple[str, ...]
    lists: tuple[str, ...]


def _draw(seed: int, number: int, folder: str) -> int:
    """Write a shard; returns its number."""
    stream = Stream(seed, photos=PHOTOS)
    pictures, words = [], []
    for place in range(number * SHARD, (number + 1) * SHARD):
        sample = stream[place]
        for photo in sample.photos:
            pictures.append(_pixels(photo, stream.settings.pixels))
        words.append([sample.titles, sample.captions, sample.lists])
    where = _names(Path(folder), number)
    with atomic_path(where[1]) as path:
        path.write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    # Written last: with it the shard is there.
    with atomic_path(where[0]) as path, path.open("wb") as file:
        np.save(file, np.stack(pictures))
    return number


def _pixels(photo: bytes, side: int) -> np.ndarray:
    return np.asarray(open_picture(photo).decode((side, side), scaled=False))


def _names(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"pictures-{number:05d}.npy", folder / f"words-{number:05d}.json"


@dataclass(frozen=True)
class Pool:
    """The first `size` samples of a stream, read by number."""

    folder: Path
    seed: int
    size: int
    """A multiple of `SHARD`."""

    @classmethod
    def drawn(cls, folder: Path, seed: int, size: int, workers: int) -> Pool:
        """A pool whose missing shards are drawn now; killed, it goes on where it was."""
        if size % SHARD:
            raise RunError(f"a pool of {size} samples: choose a multiple of {SHARD}")
        own = folder / f"seed-{seed}"
        own.mkdir(parents=True, exist_ok=True)
        left = [n for n in range(size // SHARD) if not _names(own, n)[0].is_file()]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as processes:
            asked = [processes.submit(_draw, seed, n, str(own)) for n in left]
            with Progress("pictures", size, size - SHARD * len(left)) as progress:
                for done, shard in enumerate(asked, 1):
                    shard.result()
                    progress.update(size - SHARD * (len(left) - done))
        return cls(own, seed, size)

    def pixels(self, number: int, photo: int) -> np.ndarray:
        """A photo of a sample, uint8 [y x c]."""
        stored = _pictures(_names(self.folder, number // SHARD)[0])
        return np.asarray(stored[number % SHARD * PHOTOS + photo])

    def words(self, number: int) -> Words:
        """What is written about a sample."""
        titles, captions, lists = _words(_names(self.folder, number // SHARD)[1])[number % SHARD]
        return Words(tuple(titles), tuple(captions), tuple(lists))

    def texts(self, count: int) -> Iterator[str]:
        """All that is written about the first samples."""
        for number in range(min(count, self.size)):
            found = self.words(number)
            yield from (*found.titles, *found.captions, *found.lists)


@lru_cache(maxsize=512)
def _pictures(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@lru_cache(maxsize=512)
def _words(path: Path) -> list[list[list[str]]]:
    found: list[list[list[str]]] = json.loads(path.read_text(encoding="utf-8"))
    return found
