"""How well an embedder brings words and pictures of a product together."""

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


def title_photo_recall(
    architecture: Architecture, params: Params, material: Material, seed: int, count: int
) -> dict[str, float]:
    """Share of titles that find the photo of another offer of the product, and the reverse.

    A title states a part of the attributes, and so fits several photos: no embedder reaches 1.

    Args:
        architecture: of the embedder.
        params: its weights.
        material: tokenizer and shapes.
        seed: of the stream; not that of the pool.
        count: products, each with the photo of one seller and the title of another.

    Returns:
        Recall at 1 and 5 among `count` candidates, `title_to_photo.R@1` and so on.
    """
    own = material.tokenizer, material.text, material.image
    stream, words, photos = Stream(seed, photos=2), list[Row](), list[Row]()
    for number in range(count):
        sample = stream[number]
        picture = (patchify(sample.photos[0], material.image),)
        photos.append(prompts.embedder_row(*own, title=None, attributes=None, pictures=picture))
        title = sample.titles[1]
        words.append(prompts.embedder_row(*own, title=title, attributes=None, pictures=()))
    encoder, builder = (
        Encoder(architecture, params),
        RowBuilder.of([], material.tokenizer, material.image, material.text),
    )
    sides = [encoder.embed_rows(builder, rows) for rows in (words, photos)]
    found, numbers = {}, np.arange(count)
    for name, asked, known in (("title_to_photo", 0, 1), ("photo_to_title", 1, 0)):
        ranks = positive_ranks(sides[asked], sides[known], numbers, numbers)
        for k in DEPTHS:
            found[f"{name}.R@{k}"] = round(float(recall_at_k(ranks, k).mean()), 4)
    return found
