"""Runs a service until it is told to stop, and then finishes what was begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from afmrl_jax.errors import ConfigError
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runtime.progress import log_info
from afmrl_jax.serving.app import build_app
from afmrl_jax.serving.engine import Engine
from afmrl_jax.serving.settings import ServiceSettings

MAX_HEAD = 16 << 10
"""Bytes of a request's line and headers."""
KEEP_ALIVE = 5
"""Seconds that an idle connection stays open."""
CONNECTIONS = 16
"""Connections for each request that is answered at a time: beyond that even saying 429 costs too
much, and uvicorn answers 503 itself."""


class _Server(uvicorn.Server):
    """Ends with status 0 when it is told to stop: that is how a service ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {x: signal.signal(x, self.handle_exit) for x in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(run: FinishedRun, folder: Path, compare: Path | None, settings: ServiceSettings) -> None:
    """Serve an index until SIGTERM or Ctrl-C.

    Args:
        run: that embedded the index.
        folder: what `afmrl embed` wrote; held for writing meanwhile.
        compare: what `afmrl embed` wrote with another system of the run, for the page to compare;
            only read. None for none.
        settings: where, and what is allowed.

    Raises:
        ConfigError: the address is taken, or the token cannot be used.
        RunError: the folder is damaged, of another run, or held by another process.
    """
    taken = _socket(settings)
    app = build_app(
        lambda metrics: Engine(run, folder, settings, metrics.batch),
        settings,
        None
        if compare is None
        else lambda metrics: Engine(run, compare, settings, metrics.batch, writes=False),
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(settings.limits.seconds) + 1,
        limit_concurrency=CONNECTIONS * settings.limits.requests,
    )
    host, port = taken.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    page = "a page at /, and " if settings.page else ""
    log_info(f"serve: http://{shown}:{port}, {page}documented at /docs; getting ready")
    if app.state.service.token is None:
        log_info("serve: listings cannot be changed; set AFMRL_TOKEN or --token-file to allow it")
    _Server(config).run(sockets=[taken])
    log_info("serve: stopped")


def _socket(settings: ServiceSettings) -> socket.socket:
    """The socket to listen on, before minutes are spent on loading."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}); choose "
            "another --port or --host"
        ) from error
    return taken
