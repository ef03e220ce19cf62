"""Counts and times of a service, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import Scope

from afmrl_jax.runtime.compilation import compiling

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class HasStatus(Protocol):
    """Knows the status of an answer."""

    status: int | None


class Metrics:
    """What one service has done, under names that begin with `afmrl_`, and what it takes."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        # Memory, threads and open files, by names that all such services have.
        ProcessCollector(registry=own)
        self._requests = Counter(
            "afmrl_requests", "Answers, by path and status", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "afmrl_request_seconds", "From request to answer", ["path"], buckets=SECONDS,
            registry=own,
        )  # fmt: skip
        self._active = Gauge("afmrl_active_requests", "Begun and not answered", registry=own)
        self._rows = Histogram(
            "afmrl_batch_rows", "Rows of a batch, by kind of work", ["kind"], buckets=SIZES,
            registry=own,
        )  # fmt: skip
        self._work = Histogram(
            "afmrl_batch_seconds", "Of a batch on the device, by kind of work", ["kind"],
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self._compiled = Gauge(
            "afmrl_compiled_programs", "Since the process began; constant once ready", registry=own
        )
        self.listings = Gauge("afmrl_listings", "In the index", registry=own)
        self.log_bytes = Gauge("afmrl_log_bytes", "Of the index's log of changes", registry=own)
        self.ready = Gauge("afmrl_ready", "1 once every program is compiled", registry=own)

    def batch(self, kind: str, rows: int, seconds: float) -> None:
        """Count a batch."""
        if kind != "together":
            self._rows.labels(kind).observe(rows)
            self._work.labels(kind).observe(seconds)

    @contextmanager
    def request(self, scope: Scope, answer: HasStatus) -> Iterator[None]:
        """Count a request, by the path of its route: those that are none are one."""
        began = time.monotonic()
        self._active.inc()
        try:
            yield
        finally:
            self._active.dec()
            path = getattr(scope.get("route"), "path", "other")
            self._requests.labels(path, str(answer.status or 0)).inc()
            self._seconds.labels(path).observe(time.monotonic() - began)

    def text(self) -> bytes:
        """All of it, in the format of Prometheus."""
        self._compiled.set(compiling().programs)
        found: bytes = generate_latest(self._registry)
        return found
