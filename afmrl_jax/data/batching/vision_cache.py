"""Visual tokens on disk: the output of a frozen vision tower for a picture never changes.

A folder of shards. Each is a file of raw numbers and a manifest that names its pictures by the
SHA-256 of their bytes. The manifest is written last, so a shard without one does not count.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.images import Patches
from afmrl_jax.data.catalogue.pictures import DECODING
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import CatalogueError, RunError
from afmrl_jax.runtime.files import atomic_path, is_writer, locked, write_json
from afmrl_jax.runtime.json_files import read_json
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.types import JsonObject

DTYPES: dict[str, DTypeLike] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


class Entry(NamedTuple):
    """Where a picture's tokens are."""

    shard: str
    """File name."""
    offset: int
    """Index of its first token in the shard."""
    rows: int
    columns: int
    """Of the merged grid; their product is the number of tokens."""


def picture_hashes(listing: Listing, most: int) -> tuple[str, ...]:
    """SHA-256 of the bytes of the first pictures, `most` of them, in hexadecimal."""
    places = range(min(len(listing.pictures), most))
    return tuple(hashlib.sha256(listing.read_image_bytes(n)).hexdigest() for n in places)


def preprocessing(config: ImageConfig) -> JsonObject:
    """What determines a picture's pixels, without the settings of the bins."""
    names = ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")
    settings = {name: getattr(config, name) for name in (*names, "mean", "std")}
    return {"decoding": DECODING, **settings}


@dataclass(frozen=True)
class TokenCache:
    """Tokens of one vision tower under one preprocessing."""

    folder: Path
    """Its name is chosen by the caller, who knows the tower; see `training.visual_tokens`."""
    width: int
    dtype: str
    """`float32` or `bfloat16`: the type the tower computes in, so that nothing is rounded."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let one process at a time add to the cache; readers need no lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not is_writer():
            # The first process of this job holds the lock.
            yield
            return
        words = f"{self.folder}: waiting for another process that is filling the cache"
        with locked(self.folder / ".lock", waiting=partial(log_info, words)):
            yield

    def entries(self) -> dict[str, Entry]:
        """All pictures of complete shards, by hash.

        A shard that is truncated, missing or has a broken manifest is removed with a warning, so
        that its pictures count as missing. Call this while the cache is `held`.
        """
        found: dict[str, Entry] = {}
        for manifest in sorted(self.folder.glob("*.json")):
            shard = manifest.with_suffix(".tokens")
            try:
                read = read_json(manifest)
                places = {key: Entry(shard.name, *map(int, x)) for key, x in read["places"].items()}
                expected = int(read["tokens"]) * self.width * np.dtype(DTYPES[self.dtype]).itemsize
                size = shard.stat().st_size if shard.is_file() else 0
            except (RunError, OSError, LookupError, TypeError, ValueError, AttributeError):
                warnings.warn(
                    f"{manifest} cannot be read; its pictures are computed again", stacklevel=2
                )
                _remove(manifest, shard)
                continue
            if size != expected:
                warnings.warn(
                    f"{shard} has {size} bytes instead of {expected}: it was truncated or lost; "
                    f"its {len(places)} pictures are computed again",
                    stacklevel=2,
                )
                _remove(manifest, shard)
                continue
            found |= places
        return found

    def add(self, tokens: Mapping[str, tuple[np.ndarray, tuple[int, int]]]) -> None:
        """Write a shard.

        Args:
            tokens: visual tokens [s d] and the merged grid of each picture, by hash.
        """
        # A unique name, so that two processes never write to one file.
        name = uuid.uuid4().hex
        places, offset = {}, 0
        with atomic_path(self.folder / f"{name}.tokens") as path, path.open("wb") as file:
            for key, (found, grid) in tokens.items():
                file.write(np.ascontiguousarray(found, DTYPES[self.dtype]).tobytes())
                places[key] = [offset, *grid]
                offset += len(found)
            file.flush()
            # The manifest must not survive a crash that the numbers do not.
            os.fsync(file.fileno())
        write_json(self.folder / f"{name}.json", {"tokens": offset, "places": places})


def _remove(manifest: Path, shard: Path) -> None:
    # The manifest first: without one a shard does not count. Mapped files keep their bytes.
    manifest.unlink(missing_ok=True)
    shard.unlink(missing_ok=True)


@dataclass
class CachedPictures:
    """Replaces a `PatchStore` if visual tokens are known: pictures without pixels.

    Worker processes map the files themselves, so it is cheap to send.
    """

    listings: Sequence[Listing]
    config: ImageConfig
    cache: TokenCache
    places: Sequence[tuple[Entry | None, ...]]
    """Of each listing's pictures; None if one is bad."""
    _maps: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        listings: Sequence[Listing],
        config: ImageConfig,
        cache: TokenCache,
        hashes: Sequence[tuple[str, ...]],
    ) -> CachedPictures:
        """Pictures of some listings, all of which must be in the cache."""
        entries = cache.entries()
        for listing, keys in zip(listings, hashes, strict=True):
            if config.bad_pictures == "fatal" and not all(key in entries for key in keys):
                raise CatalogueError(
                    f"listing {listing.listing_id!r}: its picture is not in {cache.folder}; "
                    "start the same command again to compute what is missing"
                )
        return cls(listings, config, cache, [tuple(map(entries.get, keys)) for keys in hashes])

    def bad(self, indices: Iterable[int]) -> int:
        """How many of some listings' pictures cannot be decoded."""
        return sum(self.places[int(i)].count(None) for i in indices)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    def count(self, index: int) -> int:
        """How many pictures a row shows of listing number `index`."""
        return len(self.places[index])

    def at(self, index: int, number: int) -> Patches | None:
        """Tokens and grid of a picture of listing number `index`; None if it is bad."""
        place = self.places[index][number]
        if place is None:
            return None
        if place.shard not in self._maps:
            dtype = DTYPES[self.cache.dtype]
            flat = np.memmap(self.cache.folder / place.shard, dtype, mode="r")
            self._maps[place.shard] = flat.reshape(-1, self.cache.width)
        merge = self.config.merge_size
        tokens = self._maps[place.shard][place.offset :][: place.rows * place.columns]
        grid = (place.rows * merge, place.columns * merge)
        count = grid[0] * grid[1]
        # As many rows as there were patches: a batch's random numbers depend on their count.
        empty = np.zeros((count, 0), np.uint8)
        return Patches(empty, grid, np.zeros((count, 2), np.int32), tokens)
