"""What stands before every request: names, origins, sizes, their number and their time."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afmrl_jax.serving.metrics import Metrics
from afmrl_jax.serving.settings import ServiceSettings

SAFE = ("GET", "HEAD", "OPTIONS")
DRAINING = 2.0
"""Seconds in which the rest of a refused request may come."""
UNLIMITED = ("/healthz", "/readyz", "/metrics")
"""Answered however much else there is to do."""


class Refused(Exception):
    """A request is answered with a status and a reason."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class Guard:
    """Middleware that refuses what a service does not answer.

    Browsers send requests of foreign pages too, and say so in `Origin` and `Sec-Fetch-Site`; a page
    that has its own name lead here says that in `Host`. None of them is answered, and there are no
    cookies that such a request could carry.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics
        self._names = settings.allowed_names
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        body, answer = _Body(receive, self._settings.limits.body_bytes), _Answer(send)
        with self._metrics.request(scope, answer):
            try:
                self._check(scope)
                await self._limited(scope, body, answer)
            except Refused as refused:
                await answer.refuse(refused, body)
            except TimeoutError:
                seconds = self._settings.limits.seconds
                reason = f"no answer within {seconds:g} s; what was to be written may be written"
                await answer.refuse(Refused(504, reason), body)

    async def _limited(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        if scope["path"] in UNLIMITED:
            await self._app(scope, body, answer)
            return
        most = self._settings.limits.requests
        if self._active >= most:
            raise Refused(
                429, f"{most} requests are being answered; try again", {"Retry-After": "1"}
            )
        self._active += 1
        try:
            async with asyncio.timeout(self._settings.limits.seconds):
                await self._app(scope, body, answer)
        finally:
            self._active -= 1

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise Refused(400, "a request needs one Host")
        if self._names is not None and host_name(hosts[0]) not in self._names:
            raise Refused(421, "this service does not answer for that name; see --names")
        if scope["method"] not in SAFE:
            origins = headers.getlist("origin")
            own = (f"http://{hosts[0]}", f"https://{hosts[0]}", *self._settings.origins)
            if any(x not in own for x in origins):
                raise Refused(403, "pages of other origins may not send requests here")
            # `none` is what a user does, and others than browsers do not say it.
            foreign = headers.get("sec-fetch-site") not in (None, "same-origin", "none")
            if foreign and not origins:
                raise Refused(403, "pages of other origins may not send requests here")
        length = headers.get("content-length", "0")
        most = self._settings.limits.body_bytes
        if not length.isdecimal() or len(length) > 18 or int(length) > most:
            raise Refused(413, f"a body may have {most:,} bytes")


class _Body:
    """Receives a body that may not be longer than announced limits."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._most, self._seen = receive, most, 0
        self.ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self._seen > self._most:
            raise Refused(413, f"a body may have {self._most:,} bytes")
        return message

    async def drain(self) -> None:
        """Read what is left and keep nothing: a client that is cut off while it sends may never see
        the answer. One that sends too much, or too slowly, is cut off.
        """
        with suppress(TimeoutError, Refused):
            async with asyncio.timeout(DRAINING):
                while not self.ended:
                    await self()


class _Answer:
    """Sends an answer, with headers that all answers have, and knows its status."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
            ]
        await self._send(message)

    async def refuse(self, refused: Refused, request: _Body) -> None:
        """Answer with a reason, unless an answer has begun."""
        if self.status is not None:
            return
        if refused.status != 413:
            await request.drain()
        body = json.dumps({"detail": refused.reason}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if not request.ended:
            headers["connection"] = "close"
        headers |= refused.headers
        pairs: list[Any] = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        await self({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


def host_name(host: str) -> str:
    """The name in a Host header, without its port, lower case; empty if it is none.

    Example:
        >>> host_name("LocalHost:8080"), host_name("[::1]:80"), host_name("a b")
        ('localhost', '::1', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        if any(x in host for x in "/?#@ ") or (parts.port is not None and parts.port < 0):
            return ""
        return (parts.hostname or "").lower()
    except ValueError:
        return ""


def require_token(request: Request, token: str | None) -> None:
    """Let only those write who know the token.

    Raises:
        Refused: the service has none (403), or the request another one or none (401).
    """
    if token is None:
        raise Refused(403, "listings cannot be changed: the service was started without a token")
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if kind.lower() != "bearer" or not right:
        raise Refused(
            401, "changing listings needs `Authorization: Bearer TOKEN`",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
