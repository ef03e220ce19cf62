"""What a generator reads off photos: the share of right values, attribute by attribute."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from afmrl_jax.data.attributes.text_format import salvaged_pairs
from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import collate
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.data.marketplace.lists import canonical
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.data.marketplace.world import VISIBLE
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.runtime.progress import Progress
from afmrl_jax.training.annotate import completion_texts, greedy
from experiments.studies.pretrain.sources import Material

BATCH = 100


@dataclass(frozen=True)
class Accuracy:
    """Of greedy lists for single photos."""

    by_key: dict[str, float]
    """Share of the photos to which a key applies whose list has its right value, in any word."""
    malformed: float
    """Share of lists that broke the form; what can be read of them counts."""


def accuracy_by_key(
    architecture: Architecture, params: Params, material: Material, seed: int, count: int
) -> Accuracy:
    """Examine a generator on photos of a stream, without their titles.

    Args:
        architecture: of the generator.
        params: its weights.
        material: tokenizer and shapes.
        seed: of the stream; not that of the pool.
        count: photos, rounded up to whole batches.
    """
    stream, right, asked, bad = Stream(seed), Counter[str](), Counter[str](), 0
    with Progress("examination", count) as progress:
        for begin in range(0, count, BATCH):
            samples = [stream[n] for n in range(begin, begin + BATCH)]
            photos = [x.photos[0] for x in samples]
            texts, malformed = _written(architecture, params, material, photos)
            bad += int(malformed.sum())
            for sample, text in zip(samples, texts, strict=True):
                found = {key: canonical(key, word) for key, word in salvaged_pairs(text)}
                for key in VISIBLE:
                    if key in sample.attributes:
                        asked[key] += 1
                        right[key] += found.get(key) == sample.attributes[key]
            progress.update(begin + BATCH)
    shares = {key: round(right[key] / asked[key], 4) for key in VISIBLE if asked[key]}
    return Accuracy(shares, round(bad / (-(-count // BATCH) * BATCH), 4))


def _written(
    architecture: Architecture, params: Params, material: Material, photos: list[bytes]
) -> tuple[list[str], np.ndarray]:
    own = material.tokenizer, material.text, material.image
    rows = [
        prompts.generator_prompt(*own, title=None, pictures=(patchify(x, material.image),))
        for x in photos
    ]
    batch = collate(rows, own[0], material.image, max(len(row.tokens) for row in rows))
    ends = (own[0].eos_id, own[0].pad_id)
    found = greedy(architecture, params, batch, material.text.max_attribute_tokens, *ends)
    return completion_texts(found, own[0])
