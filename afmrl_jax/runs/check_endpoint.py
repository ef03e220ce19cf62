"""Compares what an OpenAI-style endpoint answers with what a run's own models make."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from afmrl_jax.data.attributes.endpoint import Endpoint, bounded_client, picture_part
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.generator import Generator
from afmrl_jax.inference.systems import System
from afmrl_jax.runs.endpoint_answers import (
    Wrong,
    agreement,
    list_of,
    mixed_up,
    shown,
    value_of,
    vectors_of,
)
from afmrl_jax.runs.listing_parts import KINDS, Parts, parts_of
from afmrl_jax.runtime.background import run_in_background
from afmrl_jax.types import Role

EMBEDDINGS, CHAT = "/embeddings", "/chat/completions"
BATCH = 4
"""Texts of a request with `input`; the answer with large vectors stays within its limit."""
IN_A_ROW = 3
"""Requests in a row without an answer after which no more are sent."""


@dataclass(frozen=True)
class CheckSettings:
    """Where to ask, how much, and what counts as the same."""

    model: str = ""
    """Name that the endpoint has for the model; empty sends none."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; if it is not set, no key is sent."""
    send: Literal["messages", "input"] = "messages"
    """How listings are sent to `/v1/embeddings`. messages: a chat with pictures, title and
    attributes, which a server puts through the model's template. input: titles alone, several at
    once."""
    listings: int = 8
    """How many listings are compared."""
    cosine: float = 0.999
    """Least cosine of two vectors that are the same; 0.99 if the server computes in bfloat16."""
    agreement: float = 0.95
    """Least share of attributes that lists have in common, on average."""
    timeout: float = 60.0
    """Seconds for one answer."""
    seconds: float = 600.0
    """Seconds for all of them."""

    def __post_init__(self) -> None:
        for name in ("listings", "timeout", "seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: give more than 0")
        for name in ("cosine", "agreement"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: give more than 0, up to 1")


@dataclass
class Report:
    """What was found."""

    address: str
    asked: int
    """Requests that were to be sent."""
    sent: int = 0
    seconds: float = 0.0
    left_out: int = 0
    """Listings whose titles a template cannot write as the run reads them."""
    stopped: str | None = None
    """Why not all requests were sent."""
    faults: Counter[str] = field(default_factory=Counter)
    """What was wrong with answers, and how often."""
    cosines: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """By what was embedded, listing ids and the cosine of both vectors."""
    lists: list[tuple[str, str, str, float]] = field(default_factory=list)
    """Listing id, the run's list, the endpoint's, and their agreement."""

    def same(self, settings: CheckSettings) -> bool:
        """Whether everything was answered, and as the run does."""
        if self.faults or self.stopped or not (self.cosines or self.lists):
            return False
        cosines = [x for found in self.cosines.values() for _, x in found]
        agreed = [x[3] for x in self.lists]
        near = not agreed or float(np.mean(agreed)) >= settings.agreement
        return near and min(cosines, default=1.0) >= settings.cosine

    def as_dict(self, settings: CheckSettings) -> dict[str, Any]:
        """The report as JSON."""
        return {
            **vars(self),
            "lists": [
                dict(zip(("listing_id", "run", "endpoint", "agreement"), x, strict=True))
                for x in self.lists
            ],
            "same": self.same(settings),
        }


@dataclass(frozen=True)
class _Question:
    """A request, and what the run answers to it."""

    name: str
    """What is embedded; "" for a list."""
    ids: Sequence[str]
    body: dict[str, Any]
    vectors: np.ndarray | None = None
    """float32 [n d]"""
    text: str | None = None


def address_of(url: str) -> str:
    """The address to post to, of that or of the base before it.

    Example:
        >>> address_of("http://localhost:8000/v1/")
        'http://localhost:8000/v1/embeddings'
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no address; give one with http:// before it")
    url = url.rstrip("/")
    return url if url.endswith((EMBEDDINGS, CHAT)) else url + EMBEDDINGS


def check_endpoint(
    url: str,
    run: FinishedRun,
    system_name: str | None,
    listings: Sequence[Listing],
    settings: CheckSettings,
) -> Report:
    """Post listings to an endpoint, and compare.

    Args:
        url: base of the endpoint (`http://localhost:8000/v1`: vectors are compared), or the address
            of `/v1/embeddings` or, for lists, of `/v1/chat/completions`.
        run: whose models the endpoint serves.
        system_name: row of its results table; None for the last.
        listings: some of these are sent.
        settings: how.

    Raises:
        ConfigError: the address or the key cannot be used, or the package `openai` is missing.
        RunError: the run has no such model, or none of the listings can be sent.
    """
    address, system = address_of(url), run.system(system_name)
    endpoint = Endpoint(address, settings.model, settings.key_variable, timeout=settings.timeout)
    role: Role = "generator" if address.endswith(CHAT) else "embedder"
    whole = [x for x in listings if _written_whole(run, role, x)]
    chosen = whole[: settings.listings]
    if not chosen:
        raise RunError(
            "no listing can be sent as the run reads it: titles are too long for its budget "
            "(text.max_title_tokens), or hold special tokens; choose another --catalogue"
        )
    questions = list(_questions(role, run, system, chosen, settings))
    report = Report(address, len(questions), left_out=len(listings) - len(whole))
    run_in_background(_ask_all(endpoint, questions, settings, report))
    return report


def _written_whole(run: FinishedRun, role: Role, listing: Listing) -> bool:
    tokenizer, text = run.tokenizers[role], run.config.text_of(role)
    tokens = len(tokenizer.encode(listing.title))
    clean = not any(mark in listing.title for mark in tokenizer.marks())
    return clean and tokens <= text.max_title_tokens


def _questions(
    role: Role,
    run: FinishedRun,
    system: System,
    listings: Sequence[Listing],
    settings: CheckSettings,
) -> Iterator[_Question]:
    about = {"model": settings.model} if settings.model else {}
    ask = _for_lists if role == "generator" else _for_vectors
    for question in ask(run, system, listings, settings):
        yield replace(question, body={**about, **question.body})


def _for_lists(
    run: FinishedRun, system: System, listings: Sequence[Listing], settings: CheckSettings
) -> Iterator[_Question]:
    del settings
    if system.generator is None:
        raise RunError(f"the system {system.name} has no generator; choose another --system")
    image, text = run.config.image_of("generator"), run.config.text_of("generator")
    both = [parts_of(x, ("text", "image"), image.max_pictures) for x in listings]
    written = Generator.of(run, system.generator).write([x.item() for x in both])
    greedy = {"temperature": 0, "max_tokens": text.max_attribute_tokens}
    for listing, parts, found in zip(listings, both, written, strict=True):
        body = {"messages": messages_of(parts), **greedy}
        yield _Question("", [listing.listing_id], body, text=found)


def _for_vectors(
    run: FinishedRun, system: System, listings: Sequence[Listing], settings: CheckSettings
) -> Iterator[_Question]:
    embedder, most = Embedder.of(run, system), run.config.image_of("embedder").max_pictures
    ids, together = [x.listing_id for x in listings], settings.send == "input"
    kinds = KINDS if system.generator is not None else KINDS[:-1]
    for kind in kinds[:1] if together else kinds:
        parts = [parts_of(x, kind, most) for x in listings]
        vectors = embedder.encode([x.item() for x in parts])
        for begin in range(0, len(parts), BATCH if together else 1):
            part = slice(begin, begin + (BATCH if together else 1))
            body: dict[str, Any] = {"messages": messages_of(parts[begin])}
            if together:
                body = {"input": [x.text for x in parts[part]]}
            yield _Question(" and ".join(kind), ids[part], body, vectors[part])


def messages_of(parts: Parts) -> list[dict[str, Any]]:
    """Parts of a listing as chat messages: pictures and title by the user, then attributes."""
    content = [picture_part(x) for x in parts.images]
    content += [{"type": "text", "text": parts.text}] if parts.text else []
    said: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if parts.attributes:
        said.append({"role": "assistant", "content": parts.attributes})
    return said


async def _ask_all(
    endpoint: Endpoint, questions: Sequence[_Question], settings: CheckSettings, report: Report
) -> None:
    try:
        import openai
    except ImportError as error:
        raise ConfigError("an endpoint needs `pip install 'afmrl-jax[endpoint]'`") from error
    began, key, in_a_row = time.monotonic(), endpoint.key(), 0
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with bounded_client(openai, endpoint) as client:
        for question in questions:
            if time.monotonic() - began > settings.seconds:
                report.stopped = f"{settings.seconds:g} seconds (--seconds) are over"
                break
            report.sent += 1
            try:
                await _ask(client, endpoint, question, headers, settings, report)
                in_a_row = 0
            except Wrong as error:
                # An endpoint may repeat the key that it was sent.
                report.faults[str(error).replace(key, "[key]") if key else str(error)] += 1
                in_a_row += 1
            if in_a_row == IN_A_ROW and report.sent < len(questions):
                report.stopped = f"{IN_A_ROW} answers in a row were wrong"
                break
    report.seconds = time.monotonic() - began


async def _ask(
    client: Any,
    endpoint: Endpoint,
    question: _Question,
    headers: dict[str, str],
    settings: CheckSettings,
    report: Report,
) -> None:
    try:
        answer = await client.post(endpoint.url, json=question.body, headers=headers)
    except Exception as error:  # What the packages below raise.
        if "Timeout" in type(error).__name__:
            raise Wrong(f"no complete answer came within {endpoint.timeout:g} seconds") from error
        raise Wrong(f"it cannot be asked: {type(error).__name__}: {shown(error)}") from error
    value = value_of(answer.status_code, answer.headers, answer.content)
    if question.vectors is None:
        theirs = list_of(value, answer.content).strip()
        ours = question.text or ""
        report.lists.append((question.ids[0], ours, theirs, agreement(ours, theirs)))
        return
    found = vectors_of(value, *question.vectors.shape)
    mixed_up(question.vectors, found, settings.cosine)
    cosines = (question.vectors * found).sum(1)
    kept = report.cosines.setdefault(question.name, [])
    kept.extend(zip(question.ids, map(float, cosines), strict=True))
