"""The service as an ASGI application, to be run by `serve` or mounted in another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from afmrl_jax import __version__
from afmrl_jax.errors import AfmrlError, RunError
from afmrl_jax.serving.batcher import Stopped
from afmrl_jax.serving.docs_page import docs_page
from afmrl_jax.serving.engine import Engine
from afmrl_jax.serving.guard import Guard
from afmrl_jax.serving.metrics import Metrics
from afmrl_jax.serving.page.mount import mount_page
from afmrl_jax.serving.routes import chat, listings, models
from afmrl_jax.serving.schemas import Problem
from afmrl_jax.serving.service import Service
from afmrl_jax.serving.settings import ServiceSettings

PROBLEMS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "the body is too large"},
    422: {"model": Problem, "description": "something in the request cannot be used"},
    429: {"model": Problem, "description": "too many requests at once; try again"},
    503: {"model": Problem, "description": "programs are still being compiled"},
    504: {"model": Problem, "description": "no answer in time"},
}


def build_app(
    make: Callable[[Metrics], Engine],
    settings: ServiceSettings,
    compared: Callable[[Metrics], Engine] | None = None,
) -> FastAPI:
    """The application.

    Args:
        make: loads the engine; called at once, so that what is wrong with the index is said before
            anything listens.
        settings: of the service.
        compared: loads the engine that the page compares the other one with, if any.

    Raises:
        AfmrlError: the engine cannot be loaded, or the token cannot be used.
    """
    service = Service(make, settings, compared)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        warming = asyncio.create_task(service.warm_up())
        try:
            yield
        finally:
            await asyncio.gather(warming, return_exceptions=True)
            await service.stop()

    app = FastAPI(
        title="afmrl",
        version=__version__,
        description="Search, embed and annotate products.",
        # Its own pages of documentation load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(models.router(service), responses=PROBLEMS)
    app.include_router(chat.router(service), responses=PROBLEMS)
    app.include_router(listings.router(service), responses=PROBLEMS)
    app.include_router(_about(service, app))
    if settings.page:
        mount_page(app, service)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    app.add_exception_handler(AfmrlError, _unusable)
    app.add_exception_handler(Stopped, _stopped)
    return app


async def _unusable(request: Request, error: Exception) -> Response:
    del request
    # What cannot be found or written is no fault of the request's form.
    status = 409 if isinstance(error, RunError) else 422
    return JSONResponse({"detail": str(error)}, status)


async def _stopped(request: Request, error: Exception) -> Response:
    del request
    return JSONResponse({"detail": str(error)}, 503)


def _about(service: Service, app: FastAPI) -> APIRouter:
    router = APIRouter(tags=["service"])
    began = time.monotonic()

    @router.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "seconds": round(time.monotonic() - began, 1)}

    @router.get("/readyz", summary="Whether requests are answered", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, Any]:
        engine = service.get()
        return {
            "status": "ready",
            "listings": len(engine.index),
            "system": engine.about.system,
            "embedder": engine.embedder.identity,
            "generator": engine.has_generator,
            "write_seconds": engine.write_seconds,
            "writable": service.token is not None,
        }

    @router.get("/metrics", summary="Counts and times, for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(docs_page(app.openapi()), headers=policy)

    return router
