"""The captioner's client against a real server that fails, stalls and talks rubbish."""

import dataclasses
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from afmrl_jax.data.attributes import captioner as module
from afmrl_jax.data.attributes.captioner import Endpoint, ask_endpoint, tidy
from afmrl_jax.errors import ConfigError, RunError


class Server:
    """Answers by title; `script` holds what to do on the first requests for one."""

    def __init__(self):
        self.asked = Counter()
        self.script = {}
        self.status = 200
        self.lock = threading.Lock()
        self.most, self.now = 0, 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.now += 1
                    owner.most = max(owner.most, owner.now)
                try:
                    owner.answer(self, body)
                finally:
                    with owner.lock:
                        owner.now -= 1

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.endpoint = Endpoint(
            f"http://127.0.0.1:{self.http.server_port}/v1",
            "captioner",
            concurrency=4,
            timeout=1.0,
            retries=2,
        )

    def answer(self, handler, body):
        picture, text = body["messages"][0]["content"]
        assert picture["image_url"]["url"].startswith("data:image/png;base64,")
        title = text["text"].removeprefix(module.INSTRUCTION)
        with self.lock:
            self.asked[title] += 1
            steps = self.script.get(title, [])
            step = steps.pop(0) if steps else f"color: red; name: {len(title)}"
        if self.status != 200:
            step = self.status
        if step == "stall":
            time.sleep(2.5)
            step = "color: late"
        if isinstance(step, int):
            self.reply(handler, step, {"error": {"message": "not now"}})
            return
        choice = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": step}
        about = {"id": "x", "object": "chat.completion", "created": 0, "model": "captioner"}
        self.reply(handler, 200, about | {"choices": [choice]})

    def reply(self, handler, status, value):
        raw = json.dumps(value).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(raw)))
            if status in (429, 500):
                handler.send_header("retry-after-ms", "10")
            handler.end_headers()
            handler.wfile.write(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It waited no longer.


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    # A proxy of this machine must not be asked for its own address.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def listings(badge_listings):
    return [
        dataclasses.replace(x, title=f"badge {n:03d}") for n, x in enumerate(badge_listings[:12])
    ]


def ask(server, listings, tmp_path, **changes):
    settings = dataclasses.replace(server.endpoint, **changes)
    return ask_endpoint(listings, settings, tmp_path / "replies.jsonl", label=None)


def test_all_are_asked_once_some_at_a_time_and_in_order(server, listings, tmp_path):
    found = ask(server, listings, tmp_path)
    assert list(found.texts) == [x.listing_id for x in listings]
    assert set(found.texts.values()) == {"color: red; name: 9"}
    assert set(server.asked.values()) == {1}
    assert server.most <= 4
    assert not found.failed
    assert not found.repaired


def test_nothing_is_asked_for_twice(server, listings, tmp_path):
    first = ask(server, listings[:7], tmp_path)
    # A killed process leaves half a line behind.
    with (tmp_path / "replies.jsonl").open("a") as file:
        file.write('{"key": "abc", "repl')
    second = ask(server, listings, tmp_path)
    assert set(server.asked.values()) == {1}
    assert first.texts.items() <= second.texts.items()
    # Another question is another key.
    ask(server, listings[:1], tmp_path, max_tokens=20)
    assert server.asked["badge 000"] == 2


@pytest.mark.parametrize("step", [500, 429, "stall"])
def test_a_server_that_fails_or_stalls_is_asked_again(server, listings, tmp_path, step):
    server.script = {"badge 003": [step]}
    found = ask(server, listings, tmp_path)
    assert len(found.texts) == 12
    assert server.asked["badge 003"] == 2


def test_rubbish_is_repaired_or_asked_for_anew(server, listings, tmp_path):
    server.script = {
        "badge 001": ["Sure! Here you go:\n- Color: red.\n- Shape: round"],
        "badge 002": ["I cannot see a picture.", "shape: star"],
        "badge 004": ["no", "still no"],
    }
    found = ask(server, listings, tmp_path)
    texts = {x.title: found.texts.get(x.listing_id) for x in listings}
    assert texts["badge 001"] == "color: red; shape: round"
    assert found.repaired == [listings[1].listing_id]
    assert texts["badge 002"] == "shape: star"
    assert list(found.failed) == [listings[4].listing_id]
    assert "still no" in found.failed[listings[4].listing_id]
    # Rubbish was paid for too.
    again = ask(server, listings, tmp_path)
    assert again.failed == found.failed
    assert server.asked["badge 004"] == 2


@pytest.mark.parametrize(("status", "words"), [(401, "OPENAI_API_KEY"), (404, "--model")])
def test_a_refusal_ends_at_once_and_says_what_to_do(server, listings, tmp_path, status, words):
    server.status = status
    with pytest.raises(ConfigError, match=words):
        ask(server, listings, tmp_path)
    assert sum(server.asked.values()) <= 8


def test_a_server_that_is_down_is_not_asked_for_every_listing(
    server, listings, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "IN_A_ROW", 3)
    server.status = 500
    with pytest.raises(RunError, match="start the same command again"):
        ask(server, listings, tmp_path, retries=0, concurrency=1)
    assert len(server.asked) < 12
    server.status = 200
    assert len(ask(server, listings, tmp_path).texts) == 12


def test_a_cache_that_is_none_is_named(server, listings, tmp_path):
    (tmp_path / "replies.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(RunError, match=r"replies.jsonl:1: key"):
        ask(server, listings, tmp_path)


@pytest.mark.parametrize(
    ("reply", "text", "repaired"),
    [
        ("color: red; size: xl", "color: red; size: xl", False),
        (" color: red\n", "color: red", False),
        ("```text\ncolor: red\n```", "color: red", False),
        ("Color: red", "color: red", True),
        ("* color: red\n* size: xl.", "color: red; size: xl", True),
        ("color: red; color: blue", "color: red", True),
        ("nothing to see", "", True),
        ("", "", True),
    ],
)
def test_replies_are_tidied(reply, text, repaired):
    assert tidy(reply) == (text, repaired)
