"""Attribute lists to distill the generator from, by an endpoint or a model on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from afmrl_jax.config import pretrained_for
from afmrl_jax.data.attributes.captioner import Replies, ask_endpoint
from afmrl_jax.data.attributes.endpoint import Endpoint
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.models.huggingface.folder import base_folder, family_in
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.runtime.files import write_text
from afmrl_jax.training.annotate import annotate, require_attributes_file
from afmrl_jax.training.partition import read_model


def oracle_by_endpoint(catalogue: Catalogue, endpoint: Endpoint, out: Path) -> Replies:
    """Request the attributes of all listings, and write those that arrived to `out`.

    Every reply is kept in `OUT.replies.jsonl`, from which the next call resumes.

    Raises:
        ConfigError: the endpoint refuses key or model, or `out` is no file of attributes.
        RunError: it does not answer.
    """
    require_attributes_file(out)
    cache = out.with_name(f"{out.name}.replies.jsonl")
    replies = ask_endpoint(catalogue.listings, endpoint, cache)
    lines = (
        json.dumps({"listing_id": i, "attributes": text}, ensure_ascii=False) + "\n"
        for i, text in replies.texts.items()
    )
    write_text(out, "".join(lines))
    return replies


def oracle_by_checkpoint(
    catalogue: Catalogue, weights: Path, out: Path, *, batch_size: int = 32, max_pictures: int = 1
) -> dict[str, str]:
    """Let a Qwen-VL model from a hub folder write the attributes of all listings to `out`.

    It reads pictures and titles as the generator does, with the patches and in the published chat
    layout of its family.

    Args:
        catalogue: the listings.
        weights: folder of a model of any family, with its tokenizer.
        out: JSON lines, see `annotate`; if killed, the next call resumes.
        batch_size: listings at a time.
        max_pictures: of a listing, the first ones.

    Raises:
        RunError: the folder cannot be read.
    """
    require_attributes_file(out)
    config, mesh = pretrained_for(None, family_in(weights)), make_mesh(-1, 1)
    architecture, params = read_model(weights, config.generator, mesh)
    tokenizer = BpeTokenizer.load(base_folder(weights))
    tokenizer.check_model(architecture.config.text.vocab_size, architecture.config.image_token_id)
    image = replace(config.image_of("generator"), max_pictures=max_pictures)
    text = config.text_of("generator")
    # Each further picture has its visual tokens and two marks.
    more = (max_pictures - 1) * (image.max_patches // image.merge_size**2 + 2)
    text = replace(text, buckets=tuple(x + more for x in text.buckets))
    builder = RowBuilder.of(catalogue.listings, tokenizer, image, text)
    everything = np.arange(len(catalogue.listings))
    return annotate(
        architecture,
        params,
        builder,
        everything,
        out,
        mesh=mesh,
        batch_size=batch_size,
        label="oracle",
    )
