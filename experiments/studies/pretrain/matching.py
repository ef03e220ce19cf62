"""How well an embedder brings words, lists and pictures of a product together."""

from __future__ import annotations

import numpy as np

from afmrl_jax.data.batching import prompts
from afmrl_jax.data.batching.collate import Row
from afmrl_jax.data.batching.images import patchify
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.evaluation.metrics import positive_ranks, recall_at_k
from afmrl_jax.models.architecture import Architecture, Params
from afmrl_jax.retrieval.encoder import Encoder
from experiments.studies.pretrain.sources import Material

DEPTHS = (1, 5)


TASKS = (
    ("title_to_photo", "title", "photo"),
    ("photo_to_title", "photo", "title"),
    ("list_to_list", "list", "other list"),
    ("title_to_list", "title", "list"),
)
"""Name, what asks, and what is asked for."""


def meeting_recall(
    architecture: Architecture, params: Params, material: Material, seed: int, count: int
) -> dict[str, float]:
    """Share of titles, photos and lists of an offer that find those of another of the product.

    A title states a part of the attributes, and so fits several photos and lists: no embedder
    reaches 1 with it. Lists tell all that can be seen, each in other words.

    Args:
        architecture: of the embedder.
        params: its weights.
        material: tokenizer and shapes.
        seed: of the stream; not that of the pool.
        count: products, each with photo and list of one seller, title and another list of another.

    Returns:
        Recall at 1 and 5 among `count` candidates, `title_to_photo.R@1` and so on.
    """
    samples = list(map(Stream(seed, photos=2).__getitem__, range(count)))
    shown = {
        "photo": [_row(material, photo=x.photos[0]) for x in samples],
        "title": [_row(material, title=x.titles[1]) for x in samples],
        "list": [_row(material, attributes=x.lists[0]) for x in samples],
        "other list": [_row(material, attributes=x.lists[1]) for x in samples],
    }
    encoder = Encoder(architecture, params)
    builder = RowBuilder.of([], material.tokenizer, material.image, material.text)
    vectors = {name: encoder.embed_rows(builder, rows) for name, rows in shown.items()}
    found, numbers = {}, np.arange(count)
    for task, asks, asked in TASKS:
        ranks = positive_ranks(vectors[asks], vectors[asked], numbers, numbers)
        for k in DEPTHS:
            found[f"{task}.R@{k}"] = round(float(recall_at_k(ranks, k).mean()), 4)
    return found


def _row(
    material: Material,
    title: str | None = None,
    attributes: str | None = None,
    photo: bytes | None = None,
) -> Row:
    pictures = () if photo is None else (patchify(photo, material.image),)
    own = material.tokenizer, material.text, material.image
    return prompts.embedder_row(*own, title=title, attributes=attributes, pictures=pictures)
