"""The model cards of the demo's weights."""

from __future__ import annotations

import math
from pathlib import Path

from afmrl_jax.config import ImageConfig
from afmrl_jax.runtime.files import atomic_path
from afmrl_jax.types import JsonObject

_HEAD = """---
license: apache-2.0
library_name: afmrl_jax
tags: [{family}, product-retrieval, synthetic-data]
---
# {title}

{purpose}

It has {parameters:.2f} million parameters ({size:.1f} MB in bfloat16), reads pictures of
{pixels} x {pixels} pixels in patches of {patch}, and reads and writes bytes through a vocabulary of
{vocabulary} entries.

## Trained on

Drawn garments (`afmrl_jax.data.marketplace.stream`): {samples} products, with two photos, titles,
captions and lists each. Their combinations of attributes occur in no catalogue that the
marketplace draws, whatever its seed. There was no real picture, and no real text but the titles of
the furniture catalogue, for the vocabulary. Seed {seed};
`python -m experiments.studies.pretrain_demo` trains it again.

{training}

## Limits

It knows drawn garments and nothing else. `afmrl train` starts from it on the marketplace; for
real pictures name a Qwen-VL, `--{role}.weights FOLDER`.
"""

_GENERATOR = """{tower_steps} steps of {tower_batch} photos for the vision tower, whose tokens a
probe reads attributes from, then {generator_steps} steps of {generator_batch} rows of next-token
prediction: lists, and captions in a quarter of the rows, of a photo, a title or both. Muon for
matrices, Adam for the rest, warm-up and cosine.

Right values in greedy lists, from the photo alone, on {examined} photos of combinations that it has
never seen, where the attribute applies ({malformed:.1%} of the lists are malformed):

| attribute | right |
|--|--:|
{table}"""

_EMBEDDER = """{embedder_steps} steps of {embedder_batch} pairs of two sellers' offers of a product,
by InfoNCE at a temperature of 0.05. Each side shows a photo, a title or both; in four of five steps
words meet pictures. {reading}

Muon for matrices, Adam for the rest, warm-up and cosine.

Recall among {examined} products of combinations that it has never seen, photo and list by one
seller, title and another list by another; a title fits several products, so that nothing reaches
100 % with it:

| task | recall |
|--|--:|
{table}"""

_UNREAD = """It has read titles, which state a third to a half of the attributes, and never a list:
the stages of a run teach it what lists say."""

_READ = """Then {reading_steps} steps with lists, at {reading_rate} of the learning rates. What
meets a photo states a third to a half of the attributes, as titles do; whole lists meet lists and
titles, or stand beside the photos on both sides, and in half of these steps every product has a
twin whose lists say something else of one attribute. Lists leave out what a captioner of the
marketplace leaves out, and err as often, so that the embedder weighs them against title and
photo."""


def write_card(
    folder: Path, role: str, family: str, parameters: int, image: ImageConfig, report: JsonObject
) -> None:
    """Write README.md beside a model's weights.

    Args:
        folder: of the model.
        role: `generator` or `embedder`.
        family: of the model.
        parameters: how many numbers it has.
        image: sizes of pictures and patches.
        report: of its pretraining.
    """
    settings, found = report["settings"], dict(report["examination"])
    numbers = settings | {"malformed": found.pop("malformed", None)}
    numbers["table"] = "\n".join(f"| {key} | {share:.1%} |" for key, share in found.items())
    generator = role == "generator"
    numbers["reading"] = _READ.format(**settings) if settings.get("reading_steps") else _UNREAD
    text = _HEAD.format(
        family=family,
        title=f"The demo's {role}",
        purpose=(
            "Writes the attributes of a product from its photo, its title or both."
            if generator
            else "Makes vectors of products from their photo, their title or both."
        ),
        parameters=parameters / 1e6,
        size=2 * parameters / 1e6,
        pixels=math.isqrt(image.max_pixels),
        patch=image.patch_size,
        vocabulary=settings["vocab_size"],
        samples=f"{settings['samples']:,}",
        seed=settings["seed"],
        training=(_GENERATOR if generator else _EMBEDDER).format(**numbers),
        role=role,
    )
    with atomic_path(folder / "README.md") as path:
        path.write_text(text, encoding="utf-8")
