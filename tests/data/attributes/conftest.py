"""A captioner's endpoint, and listings to ask it for."""

import dataclasses

import pytest

from tests.data.attributes.captioner_server import Server


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    # A proxy of this machine must not be asked for its own address.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Server()
    yield found
    found.close()


@pytest.fixture
def listings(badge_listings):
    return [
        dataclasses.replace(x, title=f"badge {n:03d}") for n, x in enumerate(badge_listings[:12])
    ]
