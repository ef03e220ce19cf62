"""Puts the page at `/`, or says there what it needs."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.routing import Mount

from afmrl_jax.runtime.progress import log_info
from afmrl_jax.serving.docs_page import STYLE
from afmrl_jax.serving.page.gate import POLICY, Gate
from afmrl_jax.serving.service import Service

WITHOUT = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>afmrl</title><style>{STYLE}</style>
<h1>afmrl</h1><p>The service runs, and <a href="docs">documents itself</a>. Its page needs gradio:
<code>pip install "afmrl-jax[serve]"</code>, then start the service again.</p></html>"""


def mount_page(app: FastAPI, service: Service) -> None:
    """Serve the page; the last route, because it takes every path that no other one has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gradio's own, about other packages.
            _in_a_loop(lambda: _mount(app, service))
    except ImportError as error:
        log_info(f"serve: no page, because {error.name} is missing; see /")

        @app.get("/", include_in_schema=False)
        async def without() -> HTMLResponse:
            return HTMLResponse(WITHOUT, headers={"Content-Security-Policy": POLICY})


def _in_a_loop(work: Callable[[], None]) -> None:
    """Work while an event loop runs: without one, gradio makes some that it never closes."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:

        async def alone() -> None:
            work()

        asyncio.run(alone())
    else:
        work()


def _mount(app: FastAPI, service: Service) -> None:
    # Read when gradio is imported: it would say elsewhere that it is used.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    from afmrl_jax.serving.page.blocks import asset, page, theme

    blocks = page(service)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=asset("page.css"),
        head=asset("watch.html"),
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = Gate(mounted.app, {n: len(x.inputs) for n, x in blocks.fns.items()})
