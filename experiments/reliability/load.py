"""Load on a service of this machine: how much it answers, how fast at half of that, and beyond it.

    afmrl serve --run RUN --index INDEX --port 8080 &
    python -m experiments.reliability.load --url http://127.0.0.1:8080 --picture photo.jpg

For texts, and for texts with a picture: the most requests a second of 1 to 32 clients that each
wait for their answers; then a minute of requests that come at half of that rate whether
answered or not, with the times from when each should have been sent, and those that the service
counts itself (`served`), for the clients may be the slower side; then a rate of three times the
most, which may be refused with 429 and nothing else; then how long it takes until ten requests in a
row are answered. Memory, compiled programs and the service's times come from /metrics. Before all
of it, a text is asked for by one client, one query after another, and with --run and --index by
`afmrl search`, which starts Python and loads the models each time. Writes
experiments/results/serving_load.json. The clients share the machine with the service.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import tyro
from prometheus_client.parser import text_string_to_metric_families

from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.runtime.setup import reported
from afmrl_jax.types import JsonObject

RESULTS = Path(__file__).parents[1] / "results"
CLIENTS = (1, 2, 4, 8, 16, 32)
IN_A_ROW = 10
SEARCH, BUCKET = "/search", "afmrl_request_seconds_bucket"
"""The path that is asked, and the name under which the service counts its seconds."""
WARM, COMMANDS = 100, 3
"""Queries one after another, and calls of the command."""


@dataclass(frozen=True)
class Load:
    """Which service, and how long."""

    picture: Path
    """A photo to search by."""
    url: str = "http://127.0.0.1:8080"
    text: str = "oak chair"
    attributes: str = "off"
    """Whether the generator writes for queries: `off`, `auto` or `on`."""
    search_seconds: float = 5.0
    """Of each number of clients."""
    half_seconds: float = 60.0
    over_seconds: float = 10.0
    run: str | None = None
    """What `afmrl search` is given, with the index; without it the command is not timed."""
    index: Path | None = None
    out: Path = RESULTS / "serving_load.json"


Ask = Callable[[], Awaitable[int]]


class Clients:
    """As many connections as there are requests under way, each of a client of its own.

    One client with all connections looks through them for every request, which at hundreds of them
    takes more time than the service does.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[httpx.AsyncClient] = []

    async def request(
        self, method: str, path: str, body: JsonObject | None = None
    ) -> httpx.Response:
        """The service's answer."""
        # The one that was used last, whose connection is still open.
        client = self._idle.pop() if self._idle else self._new()
        try:
            return await client.request(method, path, json=body)
        finally:
            self._idle.append(client)

    def _new(self) -> httpx.AsyncClient:
        # Shorter than the service's: a connection that it closes as a request is sent is no answer.
        limits = httpx.Limits(keepalive_expiry=2)
        # Certificates are read for every client, and none is needed.
        return httpx.AsyncClient(base_url=self._url, limits=limits, timeout=60, verify=False)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._idle:
            await client.aclose()


async def most(ask: Ask, seconds: float) -> tuple[float, int]:
    """Answers a second of the best number of clients, and that number."""
    best = (0.0, 1)
    for clients in CLIENTS:
        until, count = time.monotonic() + seconds, Counter[int]()

        async def client(until: float = until, count: Counter[int] = count) -> None:
            while time.monotonic() < until:
                count[await ask()] += 1

        await asyncio.gather(*(client() for _ in range(clients)))
        rate = count[200] / seconds
        log_info(f"{clients} clients: {rate:.1f} answers a second, {dict(count)}")
        best = max(best, (rate, clients))
    return best


async def at_rate(ask: Ask, rate: float, seconds: float) -> tuple[Counter[int], list[float]]:
    """Statuses, and seconds from when each request should have been sent to its answer."""
    statuses, took = Counter[int](), list[float]()
    begin = time.monotonic()

    async def one(due: float) -> None:
        status = await ask()
        statuses[status] += 1
        if status == 200:
            took.append(time.monotonic() - due)

    tasks = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return statuses, took


async def recovery(ask: Ask) -> float:
    """Seconds until ten requests in a row are answered."""
    begin, row = time.monotonic(), 0
    while row < IN_A_ROW:
        row = row + 1 if await ask() == 200 else 0
    return time.monotonic() - begin


@dataclass(frozen=True)
class Said:
    """What a service says of itself at one moment."""

    programs: float
    """Compiled so far."""
    mebibytes: float
    """Memory that it takes."""
    answered: dict[float, float]
    """Searches that took at most so many seconds, by seconds, the last of them infinite."""

    @classmethod
    def of(cls, text: str) -> Said:
        """From the text of /metrics."""
        single: dict[str, float] = {}
        answered: dict[float, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.labels:
                    single[sample.name] = sample.value
                elif sample.name == BUCKET and sample.labels["path"] == SEARCH:
                    answered[float(sample.labels["le"])] = sample.value
        memory = single["process_resident_memory_bytes"] / 2**20
        return cls(single["afmrl_compiled_programs"], memory, answered)

    def quantile(self, since: Said, share: float) -> float:
        """Seconds within which a share of the searches since an earlier moment was answered.

        Within a bucket they are taken as evenly spread, and in the last one, which has no end, as
        at its beginning; NaN where there were none.
        """
        counts = {
            bound: total - since.answered.get(bound, 0.0)
            for bound, total in sorted(self.answered.items())
        }
        wanted = share * max(counts.values(), default=0.0)
        low, below = 0.0, 0.0
        for bound, total in counts.items():
            if total > below and total >= wanted:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (total - below)
            low, below = bound, total
        return float("nan")


async def said(clients: Clients) -> Said:
    """What the service says of itself now."""
    return Said.of((await clients.request("GET", "/metrics")).text)


async def measure(settings: Load, clients: Clients, body: JsonObject) -> JsonObject:
    """All figures of one kind of request."""

    async def ask() -> int:
        try:
            return (await clients.request("POST", SEARCH, body)).status_code
        except httpx.HTTPError:
            return 0

    for _ in range(IN_A_ROW):
        await ask()
    before = await said(clients)
    rate, best = await most(ask, settings.search_seconds)
    begun = await said(clients)
    statuses, took = await at_rate(ask, rate / 2, settings.half_seconds)
    half = await said(clients)
    over, _ = await at_rate(ask, 3 * rate, settings.over_seconds)
    back = await recovery(ask)
    after = await said(clients)
    p50, p99 = np.quantile(took, [0.5, 0.99]).tolist() if took else (np.nan, np.nan)
    return {
        "requests_a_second": round(rate, 1),
        "clients": best,
        "half_p50_ms": round(1000 * p50, 1),
        "half_p99_ms": round(1000 * p99, 1),
        "half_served_p50_ms": round(1000 * half.quantile(begun, 0.5), 1),
        "half_served_p99_ms": round(1000 * half.quantile(begun, 0.99), 1),
        "half_statuses": dict(statuses),
        "over_statuses": dict(over),
        "recovery_seconds": round(back, 2),
        "compiled_since_ready": after.programs - before.programs,
        "memory_mib": [round(x.mebibytes) for x in (before, half, after)],
    }


async def one_by_one(clients: Clients, body: JsonObject) -> float:
    """Median milliseconds of a query when nobody else asks."""
    took = []
    for _ in range(WARM + IN_A_ROW):
        begin = time.monotonic()
        (await clients.request("POST", SEARCH, body)).raise_for_status()
        took.append(time.monotonic() - begin)
    return round(1000 * float(np.median(took[IN_A_ROW:])), 2)


def by_command(settings: Load) -> float | None:
    """Median seconds of `afmrl search` with the same text; None if it is not told of the index."""
    if settings.run is None or settings.index is None:
        return None
    command = [sys.executable, "-m", "afmrl_jax", "search", "--run", settings.run]
    command += ["--index", str(settings.index), "--text", settings.text]
    took = []
    for _ in range(COMMANDS):
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - begin)
    return round(float(np.median(took)), 2)


async def run(settings: Load) -> JsonObject:
    """Figures by kind of request."""
    photo = base64.b64encode(settings.picture.read_bytes()).decode()
    words: JsonObject = {"text": settings.text, "attributes": settings.attributes}
    bodies = {"text": words, "text_and_picture": words | {"image": photo}}
    clients = Clients(settings.url)
    try:
        warm = {"warm_ms": await one_by_one(clients, words)}
        found = {name: await measure(settings, clients, body) for name, body in bodies.items()}
    finally:
        await clients.close()
    return {"one_text": warm, **found}


def main(settings: Load) -> None:
    """Measure, print and write."""
    command = by_command(settings)
    found = asyncio.run(run(settings))
    if command is not None:
        found["one_text"]["command_seconds"] = command
    print(json.dumps(found, indent=1))
    figures = {
        f"{kind}_{name}": value
        for kind, values in found.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    write_record(settings.out, "load", figures, [{"kind": k, **v} for k, v in found.items()])


if __name__ == "__main__":
    with reported():
        main(tyro.cli(Load, description=__doc__))
