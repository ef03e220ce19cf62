"""What stands between the service and gradio: of all that gradio answers, what the page needs.

Gradio also takes uploads, serves files, relays requests and keeps sessions. The page needs none of
it: its photo comes with the search, as text. So only its own files and its own functions are
reached, with nothing but plain values, and nothing is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afmrl_jax.errors import InputError
from afmrl_jax.runtime.json_files import parse_json
from afmrl_jax.serving.routes.bodies import validated

PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/", "/svelte/")
FUNCTIONS = "/gradio_api/run/"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    # Gradio's page has scripts inline, and makes functions of its own templates.
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""The browser loads nothing from elsewhere, whatever a page says."""
LEFT_OUT = (b"set-cookie", b"content-security-policy")
CARDS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>')
Value = str | int | float | bool | None | list[str]


class Call(BaseModel):
    """A call of one of the page's functions: gradio's format, of plain values alone.

    Gradio takes an object in place of a value for a file, which it reads and copies.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    data: list[Value] = Field(max_length=32)
    fn_index: int = Field(ge=0)
    trigger_id: int | None = None


class Gate:
    """Lets through what the page needs.

    Args:
        app: gradio's.
        functions: number of values that each of the page's functions takes, by its number.
    """

    def __init__(self, app: ASGIApp, functions: Mapping[int, int]):
        self._app, self._functions = app, dict(functions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        path = path.removeprefix(scope.get("root_path", "")) or "/"
        reads = path in PAGES or path.startswith(FOLDERS)
        if method in ("GET", "HEAD") and reads and ".." not in path:
            if path == "/":
                await self._app(_plain(scope), receive, _without_cards(_guarded(send)))
            else:
                await self._app(scope, receive, _guarded(send))
        elif method == "POST" and path.startswith(FUNCTIONS):
            await self._call(scope, receive, send)
        else:
            known = reads or path.startswith(FUNCTIONS)
            status, reason = (405, "Method Not Allowed") if known else (404, "Not Found")
            await JSONResponse({"detail": reason}, status)(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            value: Any = parse_json(await request.body(), "the body", error=InputError)
            call = validated(Call, value)
            if self._functions.get(call.fn_index) != len(call.data):
                raise InputError("the page has no such function; load it again")
        except ClientDisconnect:
            return
        except InputError as error:
            await JSONResponse({"detail": str(error)}, 422)(scope, receive, send)
            return
        # Without a session, so that none is kept.
        body = json.dumps({**call.model_dump(), "session_hash": None}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [x for x in scope["headers"] if x[0] != length[0]]

        async def checked() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app({**scope, "headers": [*headers, length]}, checked, _guarded(send))


def _plain(scope: Scope) -> Scope:
    """A request whose answer is not compressed."""
    return {**scope, "headers": [x for x in scope["headers"] if x[0] != b"accept-encoding"]}


def _without_cards(send: Send) -> Send:
    """Takes cards for social networks, which show gradio's, out of a page that is sent whole."""
    start: dict[str, Any] = {}
    body = b""

    async def changed(message: Message) -> None:
        nonlocal body
        if message["type"] == "http.response.start":
            start.update(message)
            return
        if message["type"] != "http.response.body":  # Of a test client.
            return
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        page = CARDS.sub(b"", body)
        length = (b"content-length", str(len(page)).encode())
        headers = [x for x in start["headers"] if x[0].lower() != length[0]]
        await send({**start, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": page})

    return changed


def _guarded(send: Send) -> Send:
    """Adds the policy to an answer, and takes out what would let other origins read it."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                x
                for x in message.get("headers", [])
                if not x[0].lower().startswith(b"access-control-") and x[0].lower() not in LEFT_OUT
            ]
            message["headers"] = [*kept, (b"content-security-policy", POLICY.encode())]
        await send(message)

    return guarded
