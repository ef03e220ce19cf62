"""Attributes by a large captioner behind an OpenAI-compatible endpoint, for distillation.

Every reply is saved the moment it arrives, under a hash of everything that was sent, so that no
request is made, or paid for, twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from afmrl_jax.data.attributes.text_format import is_malformed, salvage_attributes
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.runtime.files import disk_full, is_disk_full
from afmrl_jax.runtime.json_files import checked, read_records
from afmrl_jax.runtime.progress import Progress, log_info

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartParam

INSTRUCTION = (
    "List the key attributes that tell this product from similar ones (type, material, colour, "
    "pattern, shape, size and the like), as far as the picture and the title show them. Answer "
    "with one line and nothing else, in the form: key: value; key: value. Keys are lower-case and "
    "occur once. Title: "
)
FENCE = re.compile(r"^```\w*\n?|\n?```$")
IN_A_ROW = 20
"""Consecutive failed listings after which the endpoint is taken to be down."""


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
    """Seconds for one reply."""
    retries: int = 5
    """Retries of a request that failed or timed out, with growing pauses."""
    attempts: int = 2
    """Requests for one listing while the replies hold no attributes."""
    max_tokens: int = 160
    instruction: str = INSTRUCTION
    """The prompt before the title."""


@dataclass(frozen=True)
class Replies:
    """What the captioner said about some listings."""

    texts: dict[str, str]
    """Attribute text by listing id, well-formed."""
    repaired: list[str]
    """Listings whose reply broke the grammar, but held some readable pairs."""
    failed: dict[str, str]
    """Why a listing has no attributes, by listing id."""


@dataclass(frozen=True)
class _Cached:
    """A line of the cache."""

    key: str
    reply: str
    listing_id: str = ""


class ReplyCache:
    """Replies by key, in a file of JSON lines to which threads append."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        remedy = "repair the line, or remove it to request that listing again"
        for number, record in enumerate(read_records(path, repair=True, remedy=remedy), 1):
            found = checked(_Cached, record, f"{path}:{number}", remedy=remedy)
            self._known[found.key] = found.reply
        self._file = path.open("a", encoding="utf-8")

    def get(self, key: str) -> str | None:
        """The reply, or None."""
        return self._known.get(key)

    def put(self, key: str, listing_id: str, reply: str) -> None:
        """Keep a reply; it is on disk when this returns."""
        record = {"key": key, "listing_id": listing_id, "reply": reply}
        with self._lock:
            try:
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError as error:
                raise (disk_full(self._path) if is_disk_full(error) else error) from error
            self._known[key] = reply

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def tidy(reply: str) -> tuple[str, bool]:
    """The attribute text of a reply, "" if there is none, and whether it had to be repaired.

    Example:
        >>> tidy("Color: red; type: chair.")
        ('color: red; type: chair', True)
    """
    text = FENCE.sub("", reply.strip()).strip()
    if text and not is_malformed(text) and "\n" not in text:
        return text, False
    # Captioners often answer with one pair per line, bullets and periods.
    lines = (line.strip(" -*\u2022\t").rstrip(".") for line in text.splitlines())
    return salvage_attributes("; ".join(line for line in lines if ":" in line)), True


class _Captioner:
    """One listing at a time; several threads use it."""

    def __init__(self, endpoint: Endpoint, cache: ReplyCache):
        try:
            import openai
        except ImportError as error:
            raise ConfigError("an endpoint needs `pip install 'afmrl-jax[endpoint]'`") from error
        self._errors = openai
        self._endpoint = endpoint
        self._cache = cache
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=os.environ.get(endpoint.key_variable) or "none",
            timeout=endpoint.timeout,
            # The client waits longer before each retry, or as long as a busy server tells it to.
            max_retries=endpoint.retries,
        )

    def ask(self, listing: Listing) -> tuple[str, bool]:
        """Text and whether it was repaired.

        Raises:
            ConfigError: the endpoint would refuse every listing: key or model are wrong.
            RunError: this listing got no attributes; the message says why.
        """
        picture, reply = listing.read_image_bytes(), None
        for attempt in range(self._endpoint.attempts):
            key = self._key(listing, picture, attempt)
            reply = self._cache.get(key)
            if reply is None:
                reply = self._request(listing, picture, attempt)
                self._cache.put(key, listing.listing_id, reply)
            text, repaired = tidy(reply)
            if text:
                return text, repaired
        raise RunError(f"no attributes in the reply {(reply or '')[:80]!r}")

    def _key(self, listing: Listing, picture: bytes, attempt: int) -> str:
        about = self._endpoint
        digest = hashlib.sha256(picture)
        fixed = [about.model, about.instruction, about.max_tokens, listing.title, attempt]
        digest.update(json.dumps(fixed).encode())
        return digest.hexdigest()

    def _request(self, listing: Listing, picture: bytes, attempt: int) -> str:
        about, errors = self._endpoint, self._errors
        url = f"data:{_media_type(picture)};base64,{base64.b64encode(picture).decode()}"
        content: list[ChatCompletionContentPartParam] = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": about.instruction + listing.title},
        ]
        try:
            found = self._client.chat.completions.create(
                model=about.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=about.max_tokens,
                # Greedy at first; later attempts are sampled, to get another reply.
                temperature=0.7 if attempt else 0.0,
            )
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise ConfigError(
                f"{about.url} refuses the key ({error}); set a valid one in ${about.key_variable}"
            ) from error
        except errors.NotFoundError as error:
            raise ConfigError(
                f"{about.url} has no model {about.model!r} ({error}); check --url and --model"
            ) from error
        except errors.OpenAIError as error:
            raise RunError(f"{type(error).__name__}: {error}") from error
        return (found.choices[0].message.content if found.choices else None) or ""


def _media_type(picture: bytes) -> str:
    for start, kind in ((b"\x89PNG", "image/png"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif")):
        if picture.startswith(start):
            return kind
    return "image/jpeg"


def ask_endpoint(
    listings: Sequence[Listing], endpoint: Endpoint, cache: Path, *, label: str | None = "oracle"
) -> Replies:
    """Attributes of all listings, several requests at a time.

    Args:
        listings: with pictures and titles.
        endpoint: where and how to ask.
        cache: file of replies; what it holds is not requested again.
        label: name of a progress bar; None shows none.

    Raises:
        ConfigError: the `openai` package is missing, or the endpoint refuses key or model.
        RunError: `IN_A_ROW` listings in a row failed; the replies so far are kept.
    """
    replies, held = Replies({}, [], {}), ReplyCache(cache)
    captioner, in_a_row, width = _Captioner(endpoint, held), 0, endpoint.concurrency
    try:
        with (
            ThreadPoolExecutor(width) as pool,
            Progress(label, len(listings)) as bar,
        ):
            for done, (listing, future) in enumerate(
                _in_flight(pool, width, captioner, listings), 1
            ):
                error = future.exception()
                if error is None:
                    text, repaired = future.result()
                    replies.texts[listing.listing_id] = text
                    if repaired:
                        replies.repaired.append(listing.listing_id)
                    in_a_row = 0
                elif isinstance(error, RunError):
                    replies.failed[listing.listing_id] = str(error)
                    in_a_row += 1
                else:
                    raise error
                if in_a_row == min(IN_A_ROW, len(listings)):
                    raise RunError(
                        f"{in_a_row} listings in a row got no attributes from {endpoint.url}; the "
                        f"last error was: {error}; start the same command again when it answers: "
                        f"{len(replies.texts)} replies are kept in {cache}"
                    )
                bar.update(done)
    finally:
        held.close()
    if label:
        log_info(
            f"{label}: {len(replies.texts)} listings, {len(replies.repaired)} of them repaired, "
            f"{len(replies.failed)} without attributes"
        )
    order = {x.listing_id: n for n, x in enumerate(listings)}
    return Replies(
        dict(sorted(replies.texts.items(), key=lambda x: order[x[0]])),
        sorted(replies.repaired, key=order.__getitem__),
        replies.failed,
    )


def _in_flight(
    pool: ThreadPoolExecutor, width: int, captioner: _Captioner, listings: Sequence[Listing]
) -> Iterator[tuple[Listing, Future]]:
    """Finished requests as they come; only a few are queued, so that an error stops the rest."""
    waiting: dict[Future, Listing] = {}
    rest = iter(listings)
    try:
        while True:
            for listing in rest:
                waiting[pool.submit(captioner.ask, listing)] = listing
                if len(waiting) >= 2 * width:
                    break
            if not waiting:
                return
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future
    finally:
        for future in waiting:
            future.cancel()
