"""Bodies of requests: JSON, or a form with a picture as a browser sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from afmrl_jax.errors import AfmrlError, InputError
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.runtime.terminal import printable
from afmrl_jax.serving.guard import Refused

M = TypeVar("M", bound=BaseModel)
MAX_FIELDS = 64
JSON, FORM = "application/json", "multipart/form-data"


def body_docs(model: type[BaseModel], form: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the OpenAPI document says of a body; `form` names the fields of a form, if one is taken.

    The bodies are read by `read`, so FastAPI does not know them.
    """
    content: dict[str, Any] = {
        JSON: {"schema": model.model_json_schema(ref_template="#/components/schemas/{model}")}
    }
    definitions = content[JSON]["schema"].pop("$defs", {})
    content[JSON]["schema"] = _inlined(content[JSON]["schema"], definitions)
    if form is not None:
        content[FORM] = {"schema": {"type": "object", "properties": dict(form)}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {key: _inlined(x, definitions) for key, x in schema.items()}
    return [_inlined(x, definitions) for x in schema] if isinstance(schema, list) else schema


def validated(model: type[M], value: object) -> M:
    """Plain JSON values as a request.

    Raises:
        InputError: the first thing that is wrong, by its place.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = printable(".".join(str(x)[:40] for x in found["loc"][:6]))
        raise InputError(f"{place or 'the body'}: {found['msg'][:300]}") from error


async def read_json_body(request: Request, model: type[M]) -> M:
    """A body of JSON as a request.

    Raises:
        InputError: it is no such request.
        Refused: it is no JSON by its type, which a form of a foreign page could not be.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Refused(415, f"send {JSON}, not {printable(kind[:60]) or 'nothing'}")
    try:
        data = await request.body()
    except ClientDisconnect as error:
        raise Refused(400, "the connection was closed") from error
    # Minutes of parsing must not stop the others.
    value = await asyncio.to_thread(parse_json, data, "the body", error=InputError)
    return validated(model, value)


def is_form(request: Request) -> bool:
    """Whether a request's body is a form."""
    return request.headers.get("content-type", "").lower().startswith(FORM)


async def read_form(request: Request, *, lists: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a form: texts, and for files their bytes.

    Args:
        request: whose body is a form.
        lists: names that may be repeated; they are given as lists.

    Raises:
        InputError: the form is broken, or repeats another name.
    """
    most = int(request.headers.get("content-length", "0") or 0) + 1
    found: dict[str, Any] = {}
    try:
        form = request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=max(most, 1 << 20))
        async with form as fields:
            for name, value in fields.multi_items():
                data = await value.read() if isinstance(value, UploadFile) else value
                if name in lists:
                    found.setdefault(name, []).append(data)
                elif name in found:
                    raise InputError(f"{printable(name[:60])} stands twice")
                else:
                    found[name] = data
    except (MultiPartException, UnicodeError, ValueError) as error:
        if isinstance(error, AfmrlError):
            raise
        raise InputError(f"the form cannot be read ({printable(str(error)[:200])})") from error
    except ClientDisconnect as error:
        raise Refused(400, "the connection was closed") from error
    for name, value in found.items():
        _require_unicode(name)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _require_unicode(text)
    return found


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("a text of the form has half of a surrogate pair") from error


def number(text: object, name: str) -> int:
    """A whole number of a form.

    Raises:
        InputError: it is none.
    """
    digits = text.strip() if isinstance(text, str) else ""
    if digits.isascii() and digits.isdecimal() and len(digits) <= 9:
        return int(digits)
    raise InputError(f"{name} must be a whole number")
