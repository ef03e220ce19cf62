"""An engine that gets ready while the service already listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request

from afmrl_jax.runtime.progress import log_info
from afmrl_jax.serving.engine import Engine
from afmrl_jax.serving.guard import Refused, require_token
from afmrl_jax.serving.metrics import Metrics
from afmrl_jax.serving.settings import ServiceSettings


class Service:
    """An engine that gets ready in the background, and what its routes need."""

    def __init__(self, make: Callable[[Metrics], Engine], settings: ServiceSettings):
        self.settings, self.metrics = settings, Metrics()
        self.token = settings.token()
        self.engine = make(self.metrics)
        self.failure: str | None = None
        self._ready = False

    def get(self) -> Engine:
        """The engine.

        Raises:
            Refused: it is not ready yet.
        """
        if not self._ready:
            reason = self.failure or "programs are still being compiled; see /readyz"
            raise Refused(503, reason, {"Retry-After": "5"})
        return self.engine

    def get_to_write(self, request: Request) -> Engine:
        """The engine, for those who may change listings.

        Raises:
            Refused: the token is missing, or the engine is not ready yet.
        """
        require_token(request, self.token)
        return self.get()

    async def warm_up(self) -> None:
        """Compile, and then be ready."""
        try:
            await asyncio.to_thread(self.engine.warm_up)
        except Exception as error:  # /readyz says it; whoever started the service restarts it.
            self.failure = f"the start failed: {error}"
            log_info(f"serve: {self.failure}")
            raise
        self.count()
        self.metrics.ready.set(1)
        self._ready = True

    def count(self) -> None:
        """Take the size of the index for the metrics."""
        self.metrics.listings.set(len(self.engine.index))
        self.metrics.log_bytes.set(self.engine.index.log.end)

    async def stop(self) -> None:
        """Finish what was begun."""
        self._ready = False
        self.failure = "the service is stopping"
        await self.engine.finish()
        await asyncio.to_thread(self.engine.close)
