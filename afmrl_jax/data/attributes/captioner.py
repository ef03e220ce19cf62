"""Attributes by a large captioner behind an OpenAI-compatible endpoint, for distillation.

Every reply is saved the moment it arrives, under a hash of everything that was sent, so that no
request is made, or paid for, twice. The endpoint is not trusted: an answer has a deadline and a
size, redirects are not followed, and what is no reply counts as a failed listing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from afmrl_jax.data.attributes.endpoint import Endpoint, bounded_client, picture_part
from afmrl_jax.data.attributes.replies import ReplyCache, reply_of, tidy, without_controls
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.runtime.background import run_in_background
from afmrl_jax.runtime.progress import Progress, log_info

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionContentPartParam

IN_A_ROW = 20
"""Consecutive failed listings after which the endpoint is taken to be down."""
SHOWN = 200
"""Characters of an endpoint's words that a message repeats."""


@dataclass(frozen=True)
class Replies:
    """What the captioner said about some listings."""

    texts: dict[str, str]
    """Attribute text by listing id, well-formed."""
    repaired: list[str]
    """Listings whose reply broke the grammar, but held some readable pairs."""
    failed: dict[str, str]
    """Why a listing has no attributes, by listing id."""


class _Failed(RunError):
    """A listing without attributes; the others go on."""


class _Refused(_Failed):
    """Key, model or address are wrong, so that all other listings will fail too."""


class _Captioner:
    """One listing at a time; several tasks use it."""

    def __init__(self, endpoint: Endpoint, cache: ReplyCache):
        try:
            import openai
        except ImportError as error:
            raise ConfigError("an endpoint needs `pip install 'afmrl-jax[endpoint]'`") from error
        self._errors = openai
        self._endpoint = endpoint
        self._cache = cache
        self._secret = endpoint.key()
        self.client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._secret or "none",
            # The client waits longer before each retry, or as long as a busy server tells it to.
            max_retries=endpoint.retries,
            http_client=bounded_client(openai, endpoint),
        )

    async def ask(self, listing: Listing) -> tuple[str, bool]:
        """Text and whether it was repaired.

        Raises:
            _Failed: this listing got no attributes; the message says why.
            RunError: the reply cannot be kept.
        """
        places = range(min(len(listing.pictures), self._endpoint.max_pictures))
        pictures = [await asyncio.to_thread(listing.read_image_bytes, n) for n in places]
        reply = None
        for attempt in range(self._endpoint.attempts):
            key = self._key(listing, pictures, attempt)
            reply = self._cache.get(key)
            if reply is None:
                reply = self._hidden(await self._request(listing, pictures, attempt))
                self._cache.put(key, listing.listing_id, reply)
            text, repaired = tidy(reply)
            if text:
                return text, repaired
        raise _Failed(f"no attributes in the reply {(reply or '')[:80]!r}")

    def _key(self, listing: Listing, pictures: Sequence[bytes], attempt: int) -> str:
        about = self._endpoint
        digest = hashlib.sha256(pictures[0])
        for more in pictures[1:]:
            digest.update(hashlib.sha256(more).digest())
        fixed = [about.model, about.instruction, about.max_tokens, listing.title, attempt]
        digest.update(json.dumps(fixed).encode())
        return digest.hexdigest()

    async def _request(self, listing: Listing, pictures: Sequence[bytes], attempt: int) -> str:
        about, errors = self._endpoint, self._errors
        content = cast(
            "list[ChatCompletionContentPartParam]",
            [
                *map(picture_part, pictures),
                {"type": "text", "text": about.instruction + listing.title},
            ],
        )
        try:
            answer = await self.client.chat.completions.with_raw_response.create(
                model=about.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=about.max_tokens,
                # Greedy at first; later attempts are sampled, to get another reply.
                temperature=0.7 if attempt else 0.0,
            )
            return reply_of(answer.http_response.content, "the endpoint's answer")
        except RunError as error:
            raise _Failed(self._shown(error)) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise _Refused(
                f"{about.url} refuses the key ({self._shown(error)}); set a valid one in "
                f"${about.key_variable}"
            ) from error
        except errors.NotFoundError as error:
            raise _Refused(
                f"{about.url} has no model {about.model!r} ({self._shown(error)}); check --url and "
                "--model"
            ) from error
        except Exception as error:  # A strange answer may raise anything of the packages below.
            raise _Failed(self._why(error)) from error

    def _why(self, error: Exception) -> str:
        answer = getattr(error, "response", None)
        if answer is None or not 300 <= answer.status_code < 400:
            return f"{type(error).__name__}: {self._shown(error)}"
        to = self._shown(answer.headers.get("location", "an address that it does not name"))
        return (
            f"{self._endpoint.url} redirects to {to}, and redirects are not followed; give --url "
            "the new address if you trust it"
        )

    def _shown(self, words: object) -> str:
        """What the endpoint said, fit for a message."""
        text = " ".join(without_controls(self._hidden(str(words))).split())
        return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."

    def _hidden(self, text: str) -> str:
        """The text without the key, which an endpoint may repeat."""
        # Servers that want no key are sent words such as EMPTY, which a reply may well hold.
        secret = self._secret if self._secret and len(self._secret) >= 8 else None
        return text.replace(secret, "[key]") if secret else text


class _Asking:
    """All listings, several at a time, and what became of them."""

    def __init__(
        self, listings: Sequence[Listing], endpoint: Endpoint, cache: ReplyCache, bar: Progress
    ):
        self._listings = listings
        self._endpoint = endpoint
        self._cache = cache
        self._captioner = _Captioner(endpoint, cache)
        self._bar = bar
        self._in_a_row = 0
        self.replies = Replies({}, [], {})

    async def run(self) -> None:
        """Ask for all; the first error that is not a listing's own ends the rest."""
        rest = iter(self._listings)
        async with self._captioner.client:
            tasks = [
                asyncio.create_task(self._work(rest)) for _ in range(self._endpoint.concurrency)
            ]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, rest: Iterator[Listing]) -> None:
        replies = self.replies
        for listing in rest:
            try:
                text, repaired = await self._captioner.ask(listing)
            except _Failed as error:
                replies.failed[listing.listing_id] = str(error)
                self._in_a_row += 1
                self._end_if_down(error)
            else:
                replies.texts[listing.listing_id] = text
                if repaired:
                    replies.repaired.append(listing.listing_id)
                self._in_a_row = 0
            self._bar.update(len(replies.texts) + len(replies.failed))

    def _end_if_down(self, error: _Failed) -> None:
        answered = len(self.replies.texts)
        if isinstance(error, _Refused) and not answered:
            raise ConfigError(str(error)) from error
        if self._in_a_row == min(IN_A_ROW, len(self._listings)):
            raise RunError(
                f"{self._in_a_row} listings in a row got no attributes from {self._endpoint.url}; "
                f"the last error was: {error}; start the same command again when it answers: "
                f"{answered} replies are kept in {self._cache.path}"
            ) from error


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
        RunError: `IN_A_ROW` listings in a row failed, or replies cannot be kept in `cache`; the
            replies so far are kept.
    """
    with ReplyCache(cache) as held, Progress(label, len(listings)) as bar:
        asking = _Asking(listings, endpoint, held, bar)
        run_in_background(asking.run())
    replies = asking.replies
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
