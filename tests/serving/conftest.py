"""A service over thirty badges, as tests speak to it."""

import base64
import json
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.serving.app import build_app
from afmrl_jax.serving.engine import Engine
from afmrl_jax.serving.settings import ServiceSettings
from afmrl_jax.testing import draw_badge, write_badge_catalogue

TOKEN = "a-token-that-is-long-enough"
BASE = "http://127.0.0.1:8080"
WRITE = {"Authorization": f"Bearer {TOKEN}"}


def picture(seed, shape="circle", colour="red"):
    return draw_badge(shape, colour, "a", np.random.default_rng(seed))


def coded(data):
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def run(written_run):
    return FinishedRun(written_run)


@pytest.fixture(scope="module")
def badge_shop(tmp_path_factory):
    """Thirty badges, each with a price."""
    shop = write_badge_catalogue(tmp_path_factory.mktemp("shop") / "shop", listings_per_product=1)
    path = shop / "listings.jsonl"
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(x | {"price": n}) + "\n" for n, x in enumerate(rows)))
    return shop


@pytest.fixture(scope="module")
def embedded(run, badge_shop, tmp_path_factory):
    """The folder of a system with a generator."""
    folder = tmp_path_factory.mktemp("served") / "index"
    embed_catalogue(run, "agcl+distilled", load_catalogue(badge_shop), folder, thumbnails=64)
    return folder


@contextmanager
def serving(run, folder, monkeypatch, *, token=TOKEN, page=False, **options):
    """A client of a service that is ready; without its page, which takes a while to set up."""
    monkeypatch.setenv("AFMRL_TOKEN", token)
    settings = ServiceSettings(page=page, **options)
    app = build_app(lambda metrics: Engine(run, folder, settings, metrics.batch), settings)
    with TestClient(app, base_url=BASE, raise_server_exceptions=True) as client:
        client.service = app.state.service
        until = time.monotonic() + 120
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < until, client.get("/readyz").text
            time.sleep(0.02)
        yield client


@pytest.fixture(scope="module")
def client(run, embedded):
    with pytest.MonkeyPatch.context() as patch, serving(run, embedded, patch) as found:
        yield found
