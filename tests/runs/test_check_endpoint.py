"""`afmrl check-endpoint` against a stub that is wrong in many ways, each named in plain words."""

import dataclasses
import json
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("openai")

from afmrl_jax.cli import main as cli
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import ConfigError, RunError
from afmrl_jax.inference.embedder import Embedder
from afmrl_jax.inference.finished_run import FinishedRun
from afmrl_jax.inference.generator import Generator
from afmrl_jax.runs.check_endpoint import CheckSettings, address_of, check_endpoint
from afmrl_jax.runs.endpoint_answers import agreement
from afmrl_jax.runs.listing_parts import parts_of

SYSTEM = "agcl+distilled"
SECRET = "sk-very-secret-key"


class Stub:
    """An endpoint; `spoil` changes a right answer, or writes one of its own to the handler."""

    def __init__(self, vectors, lists):
        self.vectors, self.lists, self.spoil = vectors, lists, None
        self.posted, self.keys = 0, set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.posted += 1
                owner.keys.add(self.headers.get("Authorization"))
                found = owner.right(body)
                found = owner.spoil(found, self) if owner.spoil else found
                if found is not None:
                    owner.send(self, found)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=partial(self.http.serve_forever, 0.05), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def right(self, body):
        if "input" in body:
            vectors = [self.vectors[x] for x in body["input"]]
            data = [{"index": n, "embedding": x.tolist()} for n, x in enumerate(vectors)]
            return {"object": "list", "data": data}
        text = body["messages"][0]["content"][-1]["text"]
        return {"choices": [{"message": {"role": "assistant", "content": self.lists[text]}}]}

    @staticmethod
    def send(handler, value, status=200, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, x in headers.items():
            handler.send_header(name, x)
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture(scope="module")
def run(written_run):
    return FinishedRun(written_run)


@pytest.fixture(scope="module")
def chosen(run, badges):
    """Listings with titles of their own that the run reads whole."""
    found = load_catalogue(badges).listings[:40:5]
    return [dataclasses.replace(x, title=f"b{n}") for n, x in enumerate(found)]


@pytest.fixture(scope="module")
def stub(run, chosen):
    embedder = Embedder.of(run, run.system(SYSTEM))
    titles = [x.title for x in chosen]
    vectors = dict(zip(titles, embedder.encode(titles), strict=True))
    both = [parts_of(x, ("text", "image"), 1).item() for x in chosen]
    lists = dict(zip(titles, Generator.of(run, "distill").write(both), strict=True))
    found = Stub(vectors, lists)
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture(autouse=True)
def fresh(stub, monkeypatch):
    # A proxy of this machine must not be asked for its own address.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    stub.spoil, stub.posted = None, 0
    stub.keys.clear()


def check(stub, run, chosen, path="", **options):
    settings = CheckSettings(**{"send": "input", "timeout": 1.0, **options})
    return check_endpoint(stub.url + path, run, SYSTEM, chosen, settings), settings


def test_a_right_endpoint_is_the_same(stub, run, chosen):
    report, settings = check(stub, run, chosen)
    assert report.same(settings)
    assert (report.sent, stub.posted) == (2, 2)
    assert len(report.cosines["text"]) == 8
    report, settings = check(stub, run, chosen, "/chat/completions")
    assert report.same(settings)
    assert [x[3] for x in report.lists] == [1.0] * 8
    assert stub.keys == {None}


def data_of(change):
    """A fault in the list of vectors."""

    def spoil(answer, handler):
        del handler
        answer["data"] = change(answer["data"])
        return answer

    return spoil


def numbers(change):
    """A fault in the first vector."""
    return data_of(lambda data: [{**data[0], "embedding": change(data[0]["embedding"])}, *data[1:]])


def swapped(data):
    """The right vectors, at wrong places, with indexes that look right."""
    vectors = [x["embedding"] for x in data]
    return [{"index": n, "embedding": x} for n, x in enumerate([*vectors[1:], vectors[0]])]


def other_status(status, **headers):
    def spoil(answer, handler):
        del answer
        Stub.send(handler, b"it broke \x1b[31m" + SECRET.encode(), status, **headers)

    return spoil


def endless(answer, handler):
    """Bytes without end."""
    del answer
    handler.send_response(200)
    handler.end_headers()
    with suppress(BrokenPipeError, ConnectionResetError):
        while True:
            handler.wfile.write(b"[" * 65536)


def dripping(answer, handler):
    """A byte now and then."""
    del answer
    handler.send_response(200)
    handler.end_headers()
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(50):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)


WRONG = {
    "dimension": (numbers(lambda x: x[:5]), "a vector has 5 numbers, and the run's have"),
    "unnormalized": (numbers(lambda x: [3 * v for v in x]), "not normalized"),
    "nan": (numbers(lambda x: [float("nan"), *x[1:]]), "holds NaN or an infinity"),
    "swapped": (data_of(swapped), "in another order: at place"),
    "order": (data_of(lambda x: x[::-1]), "another order than they were asked for"),
    "missing": (data_of(lambda x: x[:-1]), "3 vectors for 4 texts"),
    "index": (data_of(lambda x: [{**x[0], "index": 7}, *x[1:]]), "an index is wrong"),
    "words": (numbers(lambda x: ["red", *x[1:]]), "no list of numbers"),
    "no data": (lambda answer, _: {"error": "no model"}, "has no list `data`"),
    "html": (lambda answer, _: b"<html><h1>Welcome</h1>", "a page of HTML, not with JSON"),
    "no json": (lambda answer, _: b'{"data": [', "not valid JSON"),
    "500": (other_status(500), "the status 500"),
    "404": (other_status(404), "does the address end in /v1?"),
    "redirect": (
        other_status(307, Location="http://evil.test/v1"),
        "redirects to http://evil.test",
    ),
    "endless": (endless, "larger than 1,048,576 bytes, or never ends"),
    "slow": (dripping, "no complete answer came within 1 seconds"),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_what_is_wrong_is_said(stub, run, chosen, fault, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    stub.spoil, why = WRONG[fault]
    report, settings = check(stub, run, chosen)
    assert not report.same(settings)
    assert len(report.cosines.get("text", ())) == 0
    for said in report.faults:
        assert why in said
        assert SECRET not in said
        assert "\x1b" not in said
    assert stub.keys == {f"Bearer {SECRET}"}


def test_an_endpoint_that_is_down_is_left_alone(stub, run, chosen):
    stub.spoil = other_status(503)
    report, settings = check(stub, run, chosen, "/chat/completions")
    assert stub.posted == 3
    assert "3 answers in a row were wrong" in report.stopped
    assert not report.same(settings)
    gone = dataclasses.replace(settings)
    report = check_endpoint("http://127.0.0.1:9/v1", run, SYSTEM, chosen, gone)
    assert "it cannot be asked" in next(iter(report.faults))


def test_time_is_bounded_over_all_requests(stub, run, chosen):
    def slow(answer, handler):
        del handler
        time.sleep(0.3)
        return answer

    stub.spoil = slow
    report, settings = check(stub, run, chosen, "/chat/completions", seconds=0.5)
    assert report.sent < report.asked
    assert "(--seconds) are over" in report.stopped
    assert not report.same(settings)


def test_vectors_and_lists_that_differ(stub, run, chosen):
    def noisy(data):
        rng = np.random.default_rng(0)
        vectors = [np.array(x["embedding"]) for x in data]
        vectors = [x + 0.02 * rng.normal(size=len(x)) for x in vectors]
        return [
            {"index": n, "embedding": (x / np.linalg.norm(x)).tolist()}
            for n, x in enumerate(vectors)
        ]

    stub.spoil = data_of(noisy)
    report, settings = check(stub, run, chosen)
    assert not report.faults
    assert not report.same(settings)
    least = min(x for _, x in report.cosines["text"])
    assert report.same(dataclasses.replace(settings, cosine=least - 1e-3))

    def other(answer, handler):
        del handler
        answer["choices"][0]["message"]["content"] += "; made: up"
        return answer

    stub.spoil = other
    report, settings = check(stub, run, chosen, "/chat/completions")
    assert not report.same(settings)
    assert max(x[3] for x in report.lists) < 1


def test_lists_agree_by_their_pairs():
    assert agreement("", "") == 1
    assert agreement("a: b", "") == 0
    assert agreement("a: b; c: d", "c: d ;a:b") == 1
    assert agreement("a: b; c: d", "a: b; c: e") == pytest.approx(1 / 3)


def test_what_cannot_be_sent_is_left_out_or_refused(stub, run, chosen):
    titles = ["red <|im_end|>", "word " * 60]
    strange = [dataclasses.replace(chosen[0], title=x) for x in titles]
    report, settings = check(stub, run, [*strange, *chosen])
    assert report.left_out == 2
    assert report.same(settings)
    with pytest.raises(RunError, match="choose another --catalogue"):
        check(stub, run, strange)
    with pytest.raises(RunError, match="infonce has no generator"):
        check_endpoint(
            stub.url + "/chat/completions", run, "infonce", chosen, CheckSettings(timeout=1)
        )
    with pytest.raises(ConfigError, match="http://"):
        address_of("localhost:8000")
    with pytest.raises(ConfigError, match="--cosine"):
        CheckSettings(cosine=2)


def test_the_command_prints_and_its_status_tells(stub, run, chosen, tmp_path, capsys):
    lines = []
    for x in chosen:
        (tmp_path / f"{x.title}.png").write_bytes(x.read_image_bytes())
        row = {"listing_id": x.listing_id, "product_id": x.product_id, "title": x.title}
        lines.append(json.dumps(row | {"image": f"{x.title}.png"}) + "\n")
    (tmp_path / "listings.jsonl").write_text("".join(lines))
    arguments = ["check-endpoint", stub.url, "--run", str(run.folder), "--system", SYSTEM]
    arguments += ["--catalogue", str(tmp_path), "--send", "input"]
    cli.main(arguments)
    told = capsys.readouterr().out
    assert "text: 8 vectors, least cosine 1.000000" in told
    assert told.strip().endswith("same as the run")
    cli.main([*arguments, "--as-json"])
    assert json.loads(capsys.readouterr().out)["same"] is True
    stub.spoil = WRONG["html"][0]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert "WRONG (2 times): it answers with a page of HTML" in told
    assert told.strip().endswith("NOT the same as the run")


@contextmanager
def listening(app):
    """The app at an address of its own."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


def test_our_own_service_is_the_same(run, badges, chosen, tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    import httpx

    from afmrl_jax.runs.embed import embed_catalogue
    from afmrl_jax.serving.app import build_app
    from afmrl_jax.serving.engine import Engine
    from afmrl_jax.serving.settings import ServiceSettings

    catalogue = load_catalogue(badges)
    few = dataclasses.replace(catalogue, listings=catalogue.listings[:8])
    embed_catalogue(run, SYSTEM, few, tmp_path / "index")
    settings = ServiceSettings()
    app = build_app(
        lambda metrics: Engine(run, tmp_path / "index", settings, metrics.batch), settings
    )
    asked = CheckSettings(listings=3)
    with listening(app) as url:
        until = time.monotonic() + 120
        while httpx.get(url.removesuffix("/v1") + "/readyz").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        for send in ("messages", "input"):
            report = check_endpoint(url, run, SYSTEM, chosen, dataclasses.replace(asked, send=send))
            assert report.same(asked), report
            assert len(report.cosines) == (4 if send == "messages" else 1)
        report = check_endpoint(f"{url}/chat/completions", run, SYSTEM, chosen, asked)
        assert report.same(asked), report
        # Another embedder's vectors are not.
        assert not check_endpoint(url, run, "infonce", chosen, asked).same(asked)
