"""The service that a notebook starts."""

import socket
import sys
import types
import urllib.request

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.notebook import service


def test_a_service_that_ends_says_why(tmp_path):
    with pytest.raises(RunError, match=r"(?s)afmrl serve --run .* ended with status 1.*not a run"):
        service.Service("--run", tmp_path, "--index", tmp_path)


def test_one_that_is_never_ready_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "sys", types.SimpleNamespace(executable="/bin/true"))
    with pytest.raises(RunError, match="ended with status"):
        service.Service("--demo", patience=0.01)


def test_colab_shows_it_under_another_name(monkeypatch):
    asked = []

    def answer(code):
        asked.append(code)
        return "https://8080-m-s.prod.colab.dev"

    output = types.SimpleNamespace(eval_js=answer)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(output=output))
    assert service._address(8080) == "https://8080-m-s.prod.colab.dev"
    assert asked == ["google.colab.kernel.proxyPort(8080)"]
    monkeypatch.setitem(sys.modules, "google.colab", None)
    assert service._address(8080) == "http://127.0.0.1:8080/"


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(written_run, tmp_path, badges):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from afmrl_jax.data.catalogue.load import load_catalogue
    from afmrl_jax.inference.finished_run import FinishedRun
    from afmrl_jax.runs.embed import embed_catalogue

    run = FinishedRun(written_run)
    embed_catalogue(run, "infonce", load_catalogue(badges), tmp_path / "index")
    found = service.Service("--run", written_run, "--index", tmp_path / "index", "--batch", 1)
    assert "120 listings, system infonce" in found.html()
    with urllib.request.urlopen(found.address) as answer:
        assert b"afmrl" in answer.read()
    found.stop()
    with socket.socket() as free:
        assert free.connect_ex((service.HOST, found.port)) != 0
