"""Attribute lists in the shape of OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from afmrl_jax.errors import InputError
from afmrl_jax.serving import schemas
from afmrl_jax.serving.routes.bodies import body_docs, read_json_body
from afmrl_jax.serving.service import Service


def router(service: Service) -> APIRouter:
    """The route."""
    found = APIRouter(tags=["models"])

    @found.post(
        "/v1/chat/completions",
        response_model=schemas.ChatResponse,
        openapi_extra=body_docs(schemas.ChatRequest),
        summary="As /attributes, in the shape of OpenAI's chat completions",
    )
    async def chat(request: Request) -> dict[str, Any]:
        engine = service.get()
        asked = await read_json_body(request, schemas.ChatRequest)
        if not engine.has_generator:
            raise InputError(f"the system {engine.about.system} has no generator")
        read = schemas.input_of_messages(asked.messages)
        if read.attributes is not None:
            raise InputError("the generator writes the assistant's turn; leave it out")
        (text,) = await engine.write([read])
        tokens = engine.count_tokens([read])
        written = len(engine.embedder.tokenizer.encode(text))
        return {
            "choices": [{"message": {"content": text}}],
            "model": engine.about.system,
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": written,
                "total_tokens": tokens + written,
            },
        }

    return found
