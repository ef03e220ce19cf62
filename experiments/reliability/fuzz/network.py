"""Target: replies of an endpoint, by a server that answers as the case wants."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from afmrl_jax.data.attributes.captioner import Endpoint, ask_endpoint
from afmrl_jax.data.catalogue.records import Listing
from experiments.reliability.fuzz.case import AcceptedWrongError, Case, Room, target
from experiments.reliability.fuzz.catalogues import broken_text
from experiments.reliability.fuzz.mutate import Rng, pick, spoil_bytes, spoil_file, spoil_json

HUGE = 300 << 20
LONGEST = 20_000
"""Letters of attributes from which a reply cannot be what was asked for."""


def good_reply(content: object = "color: red; type: badge") -> dict[str, Any]:
    """What an endpoint answers."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "captioner"}
    return about | {"choices": [choice]}


class Server:
    """Answers every request with `status`, `headers` and `body`, in one of several manners."""

    def __init__(self) -> None:
        self.status, self.body, self.manner = 200, b"", "plain"
        self.headers: dict[str, str] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with suppress(OSError):  # It waited no longer.
                    owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # A client that leaves early is no news.

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Read a request and reply to it."""
        handler.rfile.read(int(handler.headers["Content-Length"]))
        if self.manner == "closes":
            handler.connection.close()
            return
        if self.manner == "garbage":
            handler.wfile.write(b"\x00\xff not HTTP\r\n\r\n")
            return
        handler.send_response(self.status)
        size = {"huge": HUGE, "drip": 10_000, "short": len(self.body) + 99}
        given = {"Content-Type": "application/json", "retry-after-ms": "10"} | self.headers
        for name, value in given.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(size.get(self.manner, len(self.body))))
        handler.end_headers()
        if self.manner == "huge":
            for _ in range(HUGE >> 20):
                handler.wfile.write(b" " * (1 << 20))
        elif self.manner == "drip":
            for _ in range(600):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.2)
        else:
            handler.wfile.write(self.body)


def server_of(room: Room) -> Server:
    """The server of this worker, answering as a good one does."""
    if "server" not in room.kept:
        room.kept["server"] = Server()
    server: Server = room.kept["server"]
    server.status, server.headers, server.manner = 200, {}, "plain"
    server.body = json.dumps(good_reply()).encode()
    return server


_MANNERS = ("huge", "closes", "garbage", "short")
_CONTENTS: tuple[object, ...] = (
    "a\0b: c",
    "color: \x1b]0;own\x07",
    "color: red; " * 1_000_000,
    "color: \u202ered",
    [{"type": "text", "text": "color: red"}],
    {"color": "red"},
    7,
    None,
    "",
    "\n".join(f"- k{n}: v" for n in range(5)),
    "color:" * 1000,
)
_WHERE = ("http://192.0.2.1/v1", "http://127.0.0.1:9/v1", "https://192.0.2.1/x", "//192.0.2.1", "")


def _set(server: Server, rng: Rng) -> str:
    """Let a server answer oddly; returns how."""
    kind = rng.random()
    if kind < 0.45:
        found = spoil_json(good_reply(), rng)
        server.body = found.text
        return found.spoiled.what
    if kind < 0.6:
        content = pick(rng, _CONTENTS)
        server.body = json.dumps(good_reply(content)).encode()
        return f"the content {str(content)[:20]!r}"
    if kind < 0.67:
        server.body, spoiled = spoil_bytes(server.body, rng)
        return spoiled.what
    if kind < 0.75:
        server.status = int(pick(rng, (204, 400, 401, 403, 404, 409, 418, 429, 500, 503)))
        return f"status {server.status}"
    if kind < 0.84:
        server.status = int(pick(rng, (301, 302, 303, 307, 308)))
        server.headers = {"Location": pick(rng, _WHERE)}
        return f"{server.status} to {server.headers['Location']}"
    if kind < 0.92:
        server.headers = {"Content-Type": pick(rng, ("text/html", "image/png", "x", ""))}
        server.body = pick(rng, (b"<html>login</html>", b"", b"null", b"[]", b'"x"', b"\xff"))
        return f"{server.headers['Content-Type']} {server.body!r}"
    if kind < 0.985:
        server.manner = pick(rng, _MANNERS)
        return server.manner
    server.manner = "drip"
    return server.manner


@target("oracle")
def oracle(room: Room) -> Case:
    """A few listings described by an endpoint that answers oddly, or with a broken cache."""
    rng, cache = room.rng, room.folder / "replies.jsonl"
    server = server_of(room)
    what = ""
    wrong = False
    if rng.random() < 0.25:
        shutil.copy(room.good / "texts" / "replies.jsonl", cache)
        spoiled = spoil_file(cache, rng)
        what, wrong = spoiled.what, False
    else:
        what = _set(server, rng)
    picture = (room.good / "texts" / "photo.png").read_bytes()
    listings = [Listing(f"id-{n}", "p", f"badge {n}", picture) for n in range(3)]
    endpoint = Endpoint(server.url, "captioner", concurrency=2, timeout=1.0, retries=0, attempts=1)

    def act() -> None:
        replies = ask_endpoint(listings, endpoint, cache, label=None)
        for text in replies.texts.values():
            if not isinstance(text, str) or broken_text(text):
                raise AcceptedWrongError(f"control characters were taken: {text[:40]!r}")
            if len(text) > LONGEST:
                raise AcceptedWrongError(f"attributes of {len(text)} letters were taken")

    return Case(what, act, wrong=wrong)
