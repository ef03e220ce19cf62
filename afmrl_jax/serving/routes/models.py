"""Searching, embedding and writing attributes."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request

from afmrl_jax.data.attributes.text_format import salvaged_pairs
from afmrl_jax.errors import InputError
from afmrl_jax.inference.inputs import Input
from afmrl_jax.runs.living.filters import parse_where
from afmrl_jax.runs.living.index import Hits
from afmrl_jax.serving import schemas
from afmrl_jax.serving.engine import Engine, attributes_text
from afmrl_jax.serving.routes.bodies import (
    body_docs,
    is_form,
    number,
    read_form,
    read_json_body,
    validated,
)
from afmrl_jax.serving.schemas import input_of, picture_of, pictures_of
from afmrl_jax.serving.service import Service

SEARCH_FORM = {
    "text": {"type": "string"},
    "image": {"type": "string", "format": "binary"},
    "k": {"type": "integer", "default": 10},
    "where": {"type": "array", "items": {"type": "string"}},
    "attributes": {"type": "string", "enum": ["auto", "off", "on"]},
}


def router(service: Service) -> APIRouter:
    """The routes."""
    found = APIRouter(tags=["models"])
    _add_search(found, service)
    _add_items(found, service)
    _add_openai(found, service)
    return found


def _add_search(found: APIRouter, service: Service) -> None:
    @found.post(
        "/search",
        response_model=schemas.SearchResponse,
        response_model_exclude_none=True,
        openapi_extra=body_docs(schemas.SearchRequest, SEARCH_FORM),
        summary="Find listings by a text, a picture, or both",
    )
    async def search(request: Request) -> dict[str, Any]:
        began, engine = time.monotonic(), service.get()
        asked, picture = await _query(request)
        most = service.settings.limits.results
        if asked.k > most:
            raise InputError(f"k {asked.k}: {most} at most")
        where = parse_where(asked.where)
        query = input_of(asked.text, () if picture is None else (picture,))
        hits, written = await engine.search(query, asked.k, where, asked.attributes)
        return {
            "results": _results(engine, hits),
            "attributes": None if written is None else _written(written),
            "seconds": round(time.monotonic() - began, 4),
        }


def _add_items(found: APIRouter, service: Service) -> None:
    @found.post(
        "/embed",
        response_model=schemas.EmbedResponse,
        openapi_extra=body_docs(schemas.ItemsRequest),
        summary="Unit vectors of texts, pictures, or both",
    )
    async def embed(request: Request) -> dict[str, Any]:
        engine = service.get()
        inputs = _inputs(await read_json_body(request, schemas.ItemsRequest), service)
        vectors = await engine.embed(inputs)
        identity = engine.embedder.identity
        return {"vectors": vectors.tolist(), "dim": engine.embedder.dim, "embedder": identity}

    @found.post(
        "/attributes",
        response_model=schemas.AttributesResponse,
        openapi_extra=body_docs(schemas.ItemsRequest),
        summary="The attributes that the generator reads off pictures and titles",
    )
    async def attributes(request: Request) -> dict[str, Any]:
        engine = service.get()
        inputs = _inputs(await read_json_body(request, schemas.ItemsRequest), service)
        if not engine.has_generator:
            raise InputError(f"the system {engine.about.system} has no generator")
        return {"attributes": [_written(x) for x in await engine.write(inputs)]}


def _add_openai(found: APIRouter, service: Service) -> None:
    @found.post(
        "/v1/embeddings",
        response_model=schemas.OpenAIResponse,
        openapi_extra=body_docs(schemas.OpenAIRequest),
        summary="As /embed, in the shape of OpenAI's embeddings",
    )
    async def openai(request: Request) -> dict[str, Any]:
        engine = service.get()
        asked = await read_json_body(request, schemas.OpenAIRequest)
        inputs = _openai_inputs(asked, service)
        vectors = await engine.embed(inputs)
        if asked.dimensions is not None:
            vectors = _shortened(vectors, asked.dimensions)
        tokens = engine.count_tokens(inputs)
        return {
            "data": [
                {"index": n, "embedding": _encoded(x, asked.encoding_format)}
                for n, x in enumerate(vectors)
            ],
            "model": engine.about.system,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


async def _query(request: Request) -> tuple[schemas.SearchRequest, bytes | None]:
    """A search, and its picture."""
    if not is_form(request):
        asked = await read_json_body(request, schemas.SearchRequest)
        return asked, None if asked.image is None else picture_of(asked.image)
    fields = await read_form(request, lists=("where",))
    picture = fields.pop("image", None)
    if isinstance(picture, str):
        if picture:
            raise InputError("image: send a file")
        picture = None
    if "k" in fields:
        fields["k"] = number(fields["k"], "k")
    return validated(schemas.SearchRequest, fields), picture or None


def _inputs(asked: schemas.ItemsRequest, service: Service) -> list[Input]:
    require_few(len(asked.items), service)
    found = []
    for n, x in enumerate(asked.items):
        try:
            pictures = () if x.image is None else pictures_of(x.image)
            found.append(input_of(x.text, pictures, attributes_text(x.attributes)))
        except InputError as error:
            raise InputError(f"items[{n}]: {error}") from error
    return found


def require_few(count: int, service: Service) -> None:
    """Refuse more items than a request may have.

    Raises:
        InputError: there are more.
    """
    most = service.settings.limits.items
    if count > most:
        raise InputError(f"{count} items, and a request may have {most}; send several")


def _openai_inputs(asked: schemas.OpenAIRequest, service: Service) -> list[Input]:
    if (asked.input is None) == (asked.messages is None):
        raise InputError("give input, or messages")
    if asked.messages is not None:
        return [schemas.input_of_messages(asked.messages)]
    texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
    require_few(len(texts), service)
    if not texts or max(map(len, texts)) > schemas.MAX_TEXT:
        raise InputError(f"give one text or more, of at most {schemas.MAX_TEXT} letters")
    return [input_of(x) for x in texts]


def _shortened(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first places of each vector, of length 1 again."""
    if not 1 <= dim <= vectors.shape[1]:
        raise InputError(f"dimensions {dim}: from 1 to {vectors.shape[1]}")
    cut = vectors[:, :dim]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(lengths, np.finfo(np.float32).tiny))


def _encoded(vector: np.ndarray, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]


def _written(text: str) -> dict[str, Any]:
    return {"text": text, "pairs": dict(salvaged_pairs(text))}


def _results(engine: Engine, hits: Hits) -> Sequence[dict[str, Any]]:
    out = []
    small = engine.about.thumbnails is not None
    for listing_id, score in hits:
        if listing_id not in engine.index:  # Removed since it was found.
            continue
        shown = engine.index.shown(listing_id)
        if small:
            shown["thumbnail"] = f"/thumbnails?listing_id={quote(listing_id, safe='')}"
        out.append({"score": round(score, 6), **shown})
    return out
