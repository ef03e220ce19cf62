"""Where a captioner answers, and an HTTP client that bounds what it answers."""

from __future__ import annotations

import asyncio
import base64
import importlib
import os
from dataclasses import dataclass
from typing import Any

from afmrl_jax.data.attributes.replies import MAX_BODY
from afmrl_jax.errors import ConfigError

INSTRUCTION = (
    "List the key attributes that tell this product from similar ones (type, material, colour, "
    "pattern, shape, size and the like), as far as the picture and the title show them. Answer "
    "with one line and nothing else, in the form: key: value; key: value. Keys are lower-case and "
    "occur once. Title: "
)


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask."""

    url: str
    """Base URL, as in http://localhost:8000/v1."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; if it is not set, no key is sent."""
    concurrency: int = 8
    """Requests in flight at a time."""
    timeout: float = 60.0
    """Seconds in which a request must be answered completely."""
    retries: int = 5
    """Retries of a request that failed or timed out, with growing pauses."""
    attempts: int = 2
    """Requests for one listing while the replies hold no attributes."""
    max_tokens: int = 160
    instruction: str = INSTRUCTION
    """The prompt before the title."""
    max_pictures: int = 1
    """Pictures of a listing that are sent, the first ones."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is no address; give --url one with http:// before it")
        for name in ("concurrency", "max_pictures"):
            if getattr(self, name) < 1:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}; give 1 or more")

    def key(self) -> str | None:
        """The key, or None.

        Raises:
            ConfigError: it cannot be sent; the message does not repeat it.
        """
        found = os.environ.get(self.key_variable)
        if found and not (found.isascii() and found.isprintable() and " " not in found):
            raise ConfigError(
                f"${self.key_variable} has a space, a line end or a letter that no key has; set it "
                "again"
            )
        return found or None


def picture_part(picture: bytes) -> dict[str, Any]:
    """A part of a message with an encoded picture, which it holds itself: a data address."""
    kinds = ((b"\x89PNG", "png"), (b"RIFF", "webp"), (b"GIF8", "gif"), (b"BM", "bmp"))
    kind = next((name for start, name in kinds if picture.startswith(start)), "jpeg")
    address = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def bounded_client(openai: Any, endpoint: Endpoint) -> Any:
    """The package's HTTP client, but answers have a deadline and a size. Redirects stay answers."""

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            # The client's own timeout is one for every read, and so has no end if bytes drip.
            options |= {"stream": True, "follow_redirects": False}
            try:
                async with asyncio.timeout(endpoint.timeout):
                    answer = await super().send(request, **options)
                    body = await _start_of(answer)
            except TimeoutError as error:
                # Of the library that the installed version of the package uses.
                library = importlib.import_module(type(request).__module__.partition(".")[0])
                raise library.ReadTimeout("the deadline has passed", request=request) from error
            # Nothing compressed was asked for; a few bytes could become gigabytes.
            dropped = (b"content-encoding", b"content-length", b"transfer-encoding")
            headers = [x for x in answer.headers.raw if x[0].lower() not in dropped]
            return type(answer)(answer.status_code, headers=headers, content=body, request=request)

    return Bounded(
        timeout=endpoint.timeout, follow_redirects=False, headers={"Accept-Encoding": "identity"}
    )


async def _start_of(answer: Any) -> bytes:
    """The body, or as much of it as shows that it is larger than `MAX_BODY`."""
    found = bytearray()
    try:
        async for chunk in answer.aiter_raw():
            found += chunk
            if len(found) > MAX_BODY:
                break
    finally:
        await answer.aclose()
    return bytes(found[: MAX_BODY + 1])
