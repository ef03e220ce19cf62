"""An endpoint that fails, stalls and talks rubbish as it is told."""

import dataclasses
import json
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from afmrl_jax.data.attributes.captioner import ask_endpoint
from afmrl_jax.data.attributes.endpoint import INSTRUCTION, Endpoint


def completion(content):
    """The body of a good answer."""
    choice = {"index": 0, "finish_reason": "stop"}
    choice["message"] = {"role": "assistant", "content": content}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "captioner"}
    return about | {"choices": [choice]}


class Server:
    """Answers by title; `script` holds what to do on the first requests for one."""

    def __init__(self):
        self.asked = Counter()
        self.script = {}
        self.pictures = []
        self.status = 200
        self.lock = threading.Lock()
        self.most, self.now = 0, 0
        self.closed = threading.Event()
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
        threading.Thread(target=partial(self.http.serve_forever, 0.05), daemon=True).start()
        self.endpoint = Endpoint(
            f"http://127.0.0.1:{self.http.server_port}/v1",
            "captioner",
            concurrency=4,
            timeout=1.0,
            retries=2,
        )

    def answer(self, handler, body):
        *pictures, text = body["messages"][0]["content"]
        for picture in pictures:
            assert picture["image_url"]["url"].startswith("data:image/png;base64,")
        self.pictures.append(len(pictures))
        title = text["text"].removeprefix(INSTRUCTION)
        with self.lock:
            self.asked[title] += 1
            steps = self.script.get(title, [])
            step = steps.pop(0) if steps else f"color: red; name: {len(title)}"
        if self.status != 200:
            step = self.status
        if callable(step):
            with suppress(BrokenPipeError, ConnectionResetError):
                step(handler)
            handler.close_connection = True
            return
        if step == "stall":
            time.sleep(2.5)
            step = "color: late"
        if isinstance(step, int):
            self.reply(handler, step, {"error": {"message": "not now"}})
            return
        self.reply(handler, 200, completion(step))

    def close(self):
        """End, with all requests that are not answered yet."""
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

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


def ask(server, listings, tmp_path, **changes):
    settings = dataclasses.replace(server.endpoint, **changes)
    return ask_endpoint(listings, settings, tmp_path / "replies.jsonl", label=None)
