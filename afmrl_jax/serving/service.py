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
    """An engine that gets ready in the background, and what its routes need.

    Args:
        make: loads the engine.
        settings: of the service.
        compared: loads the engine of another system, which the page compares; None for none.
    """

    def __init__(
        self,
        make: Callable[[Metrics], Engine],
        settings: ServiceSettings,
        compared: Callable[[Metrics], Engine] | None = None,
    ):
        self.settings, self.metrics = settings, Metrics()
        self.token = settings.token()
        self.engine = make(self.metrics)
        try:
            self.compared = None if compared is None else compared(self.metrics)
        except BaseException:
            self.engine.close()
            raise
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

    def get_compared(self) -> Engine:
        """The engine of the other system.

        Raises:
            Refused: there is none, or it is not ready yet.
        """
        self.get()
        if self.compared is None:
            raise Refused(404, "there is no other system; start the service with --compare")
        return self.compared

    def get_to_write(self, request: Request) -> Engine:
        """The engine, for those who may change listings.

        Raises:
            Refused: the token is missing, or the engine is not ready yet.
        """
        require_token(request, self.token)
        return self.get()

    @property
    def _engines(self) -> list[Engine]:
        return [self.engine] if self.compared is None else [self.engine, self.compared]

    async def warm_up(self) -> None:
        """Compile, and then be ready."""
        try:
            for engine in self._engines:
                await asyncio.to_thread(engine.warm_up)
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
        for engine in self._engines:
            await engine.finish()
            await asyncio.to_thread(engine.close)
