"""The generator's vision tower learns to see before its decoder learns to write.

A probe reads every visible attribute off the visual tokens: one learned query an attribute, which
weights the tokens of a picture, and a linear map to the attribute's values. Most tokens of a list
can be guessed without looking, so next-token prediction alone teaches a tower slowly; the probe's
loss is all about the picture. It is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afmrl_jax.data.batching.collate import Row, VLBatch, collate
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.data.marketplace.world import ATTRIBUTES, VISIBLE
from afmrl_jax.data.sources.sampler import epoch_indices
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.parallel.param_paths import TOWER
from afmrl_jax.training.loop import FrozenStepFunction
from afmrl_jax.training.state import TrainState, gradient_step
from afmrl_jax.types import AnyArray, Float, Int
from experiments.studies.pretrain.pool import PHOTOS
from experiments.studies.pretrain.sources import Material

LARGEST = max(len(ATTRIBUTES[key].values) for key in VISIBLE)
KNOWN = np.array([[n < len(ATTRIBUTES[key].values) for n in range(LARGEST)] for key in VISIBLE])
"""[k v]; which places of the table of logits are values."""


class TowerBatch(NamedTuple):
    """Photos, and what can be seen on them."""

    rows: VLBatch
    values: Int[AnyArray, "b k"]
    """Number of each visible attribute's value, -1 where it does not apply."""
    bad_pictures: AnyArray | None = None


@dataclass(frozen=True)
class TowerSource:
    """Photos of the pool; a batch is a function of the pool, the seed and its number."""

    material: Material
    steps: int
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> TowerBatch:
        own, pool = self.material, self.material.pool
        rng = np.random.default_rng([self.seed, step, 3])
        numbers = epoch_indices(pool.size, self.batch_size, step, self.seed + 2).tolist()
        photos = rng.integers(PHOTOS, size=len(numbers)).tolist()
        pictures = [own.picture(n, photo) for n, photo in zip(numbers, photos, strict=True)]
        length = len(pictures[0][0].pixels) // own.image.merge_size**2
        rows = [Row([own.tokenizer.image_pad_id] * length, picture) for picture in pictures]
        return TowerBatch(
            collate(rows, own.tokenizer, own.image, length), values_seen(pool.seed, numbers)
        )


def values_seen(seed: int, numbers: list[int]) -> np.ndarray:
    """Number of each visible attribute's value on the samples of a stream, int32 [n k], or -1."""
    stream = Stream(seed)
    truths = [stream.truth(number) for number in numbers]
    found = [
        [ATTRIBUTES[key].values.index(truth[key]) if key in truth else -1 for key in VISIBLE]
        for truth in truths
    ]
    return np.array(found, np.int32)


def probe(width: int, seed: int) -> Params:
    """A fresh probe of visual tokens of a width."""
    rng, keys = np.random.default_rng([seed, 4]), len(VISIBLE)
    scales = {
        "probe/query": ((keys, width), 0.05),
        "probe/key": ((width, width), width**-0.5),
        "probe/values": ((keys, width, LARGEST), width**-0.5),
    }
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for name, (shape, scale) in scales.items()
    }


def probed(params: Params, tokens: Float[AnyArray, "n s d"]) -> Float[jax.Array, "n k v"]:
    """Logits of every attribute's values; -inf where there is no value."""
    keys = jnp.einsum("nsd,de->nse", tokens, params["probe/key"])
    near = jnp.einsum("nse,ke->nks", keys, params["probe/query"])
    seen = jnp.einsum("nks,nsd->nkd", jax.nn.softmax(near), tokens)
    logits = jnp.einsum("nkd,kdv->nkv", seen, params["probe/values"])
    return jnp.where(jnp.asarray(KNOWN)[None], logits, -jnp.inf)


def trainable(params: Params, width: int, seed: int) -> tuple[Params, Params]:
    """What stays of a model while its tower learns, and what learns: the tower and a probe."""
    tower = {name: x for name, x in params.items() if name.startswith(TOWER)}
    rest = {name: x for name, x in params.items() if name not in tower}
    return rest, tower | probe(width, seed)


def make_tower_step(
    architecture: Architecture, optimizer: optax.GradientTransformation
) -> FrozenStepFunction:
    """The jitted step (frozen, state, batch, key) -> (state, metrics) of the tower."""

    @partial(jax.jit, donate_argnums=1)
    def step(
        frozen: Params, state: TrainState, batch: TowerBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        del key  # Nothing random: the batch decides all.

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = {name: x for name, x in params.items() if name.startswith(TOWER)}
            features = architecture.bind({**frozen, **model}).visual_of(batch.rows)
            assert features is not None
            logits = probed(params, features.tokens)
            asked = batch.values >= 0
            wanted = jnp.maximum(batch.values, 0)[..., None]
            chances = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted, -1)[..., 0]
            right = ((logits.argmax(-1) == batch.values) & asked).sum().astype(jnp.float32)
            count = asked.sum().astype(jnp.float32)
            value = -jnp.where(asked, chances, 0.0).sum() / count
            return value, {"accuracy": right / count}

        return gradient_step(state, loss, optimizer)

    return step
