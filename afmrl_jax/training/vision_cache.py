"""Fills the cache of visual tokens, so that training need not run the frozen vision tower."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from afmrl_jax.config import ImageConfig
from afmrl_jax.data.batching.packing import Bins, pack
from afmrl_jax.data.batching.vision_cache import (
    CachedPictures,
    TokenCache,
    picture_hashes,
    preprocessing,
)
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import ConfigError
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.models.qwen_vl.kept_features import side_by_side
from afmrl_jax.parallel.param_paths import TOWER
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.runtime.distributed import barrier, to_host
from afmrl_jax.runtime.preemption import Preempted, reached
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.types import Array, Float

PICTURES = 64
"""Computed at once."""
SHARD_BYTES = 1 << 28


@partial(jax.jit, static_argnames="architecture")
def _tower(architecture: Architecture, params: Params, bins: Bins) -> Float[Array, "n s w"]:
    """All that the tower gives of pictures, side by side."""
    model = architecture.bind(params)
    found = model.visual(bins.patches, bins.segment, bins.position, bins.normalization)
    return side_by_side(found)


def tower_key(architecture: Architecture, params: Params, image: ImageConfig) -> str:
    """A hash of all that a picture's tokens depend on, beside the picture.

    Those are the tower's weights as they are kept, its description, how it is computed and how
    pictures become patches.
    """
    config, execution = architecture.config, architecture.execution
    told = [config.family, repr(config.vision), execution.dtype, preprocessing(image)]
    if config.lora is not None and config.lora.adapts_tower:
        told.append(repr((config.lora, config.lora_maps)))
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(x for x in params if x.startswith(TOWER)):
        value = to_host(params[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:32]


def with_cached_tokens(
    builder: RowBuilder,
    architecture: Architecture,
    params: Params,
    folder: Path,
    mesh: Mesh,
) -> RowBuilder:
    """The builder with visual tokens in place of pixels; computes what the cache lacks.

    Several processes may share the folder: they fill it one after the other.

    Args:
        builder: rows over some listings.
        architecture: the embedder.
        params: all of its parameters; those of the vision tower must not change afterwards.
        folder: of all caches; this tower's is a folder in it.
        mesh: where the tower runs.
    """
    hashes = [picture_hashes(x, builder.image.max_pictures) for x in builder.listings]
    config, dtype = architecture.config, architecture.execution.dtype
    width = config.text.hidden_dim * (1 + len(config.vision.deep_blocks))
    cache = TokenCache(folder / tower_key(architecture, params, builder.image), width, dtype)
    with cache.held():
        barrier("visual cache is held")
        known = cache.entries()
        places = [(n, at, key) for n, keys in enumerate(hashes) for at, key in enumerate(keys)]
        first = {key: (n, at) for n, at, key in reversed(places)}
        missing = {key: index for key, index in sorted(first.items()) if key not in known}
        if missing:
            _fill(cache, missing, builder, architecture, params, mesh)
            barrier("visual cache is filled")
        pictures = CachedPictures.of(builder.listings, builder.image, cache, hashes)
    return dataclasses.replace(builder, pictures=pictures)


def _fill(
    cache: TokenCache,
    missing: dict[str, tuple[int, int]],
    builder: RowBuilder,
    architecture: Architecture,
    params: Params,
    mesh: Mesh,
) -> None:
    config, names = builder.image, [*missing]
    merge = config.merge_size
    ready: dict[str, tuple[np.ndarray, tuple[int, int]]] = {}
    size = 0
    with jax.set_mesh(mesh), Progress("visual tokens", len(names)) as progress:
        for begin in range(0, len(names), PICTURES):
            found_here = [
                (key, builder.pictures.at(*missing[key])) for key in names[begin:][:PICTURES]
            ]
            own = [key for key, picture in found_here if picture is not None]
            pictures = [picture for _, picture in found_here if picture is not None]
            none: tuple = ()
            rows = [(x,) for x in pictures] + [none] * (PICTURES - len(own))
            bins = pack(rows, config, builder.host)
            found = _tower(architecture, params, place_batch(bins, mesh))
            if found.shape[-1] != cache.width:
                raise ConfigError(
                    f"the vision tower of {architecture.config.family} gives {found.shape[-1]} "
                    f"numbers a token where its config says {cache.width}; train without "
                    "visual_cache"
                )
            tokens = to_host(found).reshape(-1, cache.width)
            for key, picture, first in zip(own, pictures, bins.visual_start, strict=False):
                grid = (picture.grid[0] // merge, picture.grid[1] // merge)
                ready[key] = (tokens[first : first + grid[0] * grid[1]], grid)
                size += ready[key][0].nbytes
            leaving = reached()
            if ready and (size > SHARD_BYTES or begin + PICTURES >= len(names) or leaving):
                cache.add(ready)
                ready, size = {}, 0
            progress.update(begin + len(found_here))
            if leaving:
                raise Preempted
