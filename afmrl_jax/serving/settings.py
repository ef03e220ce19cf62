"""Where a service listens, what it allows, and how it batches."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from afmrl_jax.config.validation import require
from afmrl_jax.errors import ConfigError
from afmrl_jax.runtime.json_files import read_bytes

TOKEN_VARIABLE = "AFMRL_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """What a request may cost; beyond it stands an answer with the reason."""

    body_bytes: int = 8 << 20
    """Bytes of a request's body (413)."""
    pixels: int = 25_000_000
    """Pixels of a picture (422)."""
    requests: int = 64
    """Requests that are answered or wait at a time (429)."""
    seconds: float = 20.0
    """Seconds from a request's first byte to its answer (504)."""
    items: int = 32
    """Texts, pictures or listings of a request (422)."""
    results: int = 100
    """Largest k (422)."""

    def __post_init__(self) -> None:
        for name in ("body_bytes", "pixels", "requests", "seconds", "items", "results"):
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(self.results <= 1000, "results: 1000 at most")


@dataclass(frozen=True)
class ServiceSettings:
    """How a service runs."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it."""
    port: int = 8080
    """Port to listen on; 0 for any that is free."""
    names: tuple[str, ...] = ()
    """Names by which clients reach it, besides its address, such as `search.shop.example`. Requests
    for other names are refused if any are given or the address is this machine's own."""
    origins: tuple[str, ...] = ()
    """Pages of other origins that may send requests, as in `https://shop.example`."""
    token_file: Path | None = None
    """File with the token that changes of listings need; by default the variable AFMRL_TOKEN.
    Without either, listings cannot be changed."""
    batch: Literal[1, 8, 64] = 8
    """Most rows that the device works on at a time."""
    wait_ms: float = 3.0
    """Milliseconds that a request waits for others to share its batch."""
    write_within: float = 0.5
    """With `attributes=auto`, the generator writes for a query if it takes no longer than so many
    seconds alone, as measured at the start."""
    page: bool = True
    """Show a page for people at `/`; off, there is only the interface for programs."""
    limits: Limits = field(default_factory=Limits)
    """What a request may cost."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 1 << 16, f"port {self.port} is none")
        require(0 <= self.wait_ms <= 1000, "wait_ms: from 0 to 1000")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def allowed_names(self) -> frozenset[str] | None:
        """Names in the Host header that are answered, lower case; None for any."""
        if not self.is_loopback and not self.names:
            return None
        own = ("127.0.0.1", "localhost", "::1") if self.is_loopback else ()
        return frozenset(x.lower() for x in (*own, self.host, *self.names))

    def token(self) -> str | None:
        """The token that writing needs; None if nothing may be written.

        Raises:
            ConfigError: the file cannot be read, or the token is short.
        """
        found = os.environ.get(TOKEN_VARIABLE, "").strip()
        if self.token_file is not None:
            data = read_bytes(self.token_file, limit=4096, error=ConfigError)
            found = data.decode("ascii", "replace").strip()
        if not found and self.token_file is None:
            return None
        if len(found) < SHORTEST_TOKEN or not found.isascii() or not found.isprintable():
            raise ConfigError(
                f"the token must be {SHORTEST_TOKEN} printable ASCII letters or more; "
                "`openssl rand -hex 32` makes one"
            )
        return found
