"""The page at `/`: what it shows, what reaches gradio, and what stands there without gradio."""

import base64
import json
import re
import sys

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from afmrl_jax.data.attributes.text_format import salvaged_pairs
from afmrl_jax.serving.page.facets import facets_of
from afmrl_jax.serving.page.gate import Gate
from afmrl_jax.serving.page.shown import Shown, fragment
from tests.serving.conftest import picture, serving

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def card(line, asked=None, price="price"):
    line = {"listing_id": "a", "product_id": "a", "title": "chair", **line}
    return Shown.of(line, 0.5, asked, price, pictured=True)


def results(*cards, written=()):
    context = {"cards": cards, "count": 3, "written": written, "seconds": 0.1}
    return fragment("results", context)


def test_facets_are_pairs_and_the_column_with_prices():
    lines = [
        {"attributes": "color: red; type: chair", "extra": {"Price": "9.90", "stock": 3}},
        {"attributes": "color: red", "extra": {"Price": "on request"}},
        {"extra": {"brand": "Acme"}},
    ]
    found = facets_of(lines)
    assert found.price == "Price"
    assert found.choices == [
        ("color: red (2)", "attributes.color=red"),
        ("type: chair (1)", "attributes.type=chair"),
    ]
    assert facets_of(lines[2:]).price is None
    assert salvaged_pairs("") == []
    assert facets_of([{"attributes": None}]).pairs == ()


def test_texts_of_listings_are_escaped():
    line = {"title": HOSTILE, "listing_id": HOSTILE, "attributes": f"color: {HOSTILE}"}
    html = results(card({**line, "extra": {HOSTILE: HOSTILE}}), written=[(HOSTILE, HOSTILE)])
    assert "<script" not in html
    assert "<img src=x" not in html
    assert html.count("<img ") == 1


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("https://shop.example/a?b=1&c=2", True),
        ("http://shop.example", True),
        ("javascript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("//shop.example", False),
        ("https:///nowhere", False),
        ("http://[broken", False),
        (7, False),
    ],
)
def test_only_addresses_of_the_web_become_links(url, linked):
    shown = card({"extra": {"URL": url}})
    assert (shown.url is not None) == linked
    assert ("href=" in results(shown)) == linked


def test_a_price_is_shown_with_its_currency():
    extra = {"price": "1234.5", "currency": "EUR", "brand": "Acme"}
    shown = card({"extra": extra})
    assert shown.price == "1,234.50 EUR"
    assert shown.facts == (("brand", "Acme"),)
    assert card({"extra": {"price": 12}}).price == "12"
    assert card({"extra": {"price": "on request"}}).price == "on request"
    assert card({}).price is None


def test_attributes_that_agree_and_differ_are_told_apart_by_words():
    html = results(
        card({"attributes": "type: chair; color: blue; leg: oak"}, "type: chair; color: red"),
        written=salvaged_pairs("type: chair; color: red"),
    )
    marks = re.findall(r"</span> (\S+: \S+) <small>(.+?)</small>", html)
    assert marks == [
        ("type: chair", "same"), ("color: blue", "differs"), ("leg: oak", "not asked")
    ]  # fmt: skip
    alone = results(card({"attributes": "type: chair"}))
    assert "<small>same" not in alone
    assert "type: chair" in alone


@pytest.fixture
def gated():
    """A client of a gate, and what reached the application behind it."""
    seen = []

    async def anything(request):
        seen.append(json.loads(await request.body() or b"null"))
        headers = {"access-control-allow-origin": "*", "set-cookie": "a=b"}
        if request.url.path == "/":
            card = '<meta\n property="og:image" content="https://foreign.example/a.jpg" />'
            return HTMLResponse(f"<head>{card}</head>", headers=headers)
        return JSONResponse("passed", headers=headers)

    methods = ["GET", "HEAD", "POST", "PUT"]
    app = Starlette(routes=[Route("/{path:path}", anything, methods=methods)])
    client = TestClient(Gate(app, {2: 4, 3: 0}))
    client.seen = seen
    return client


@pytest.mark.parametrize("path", ["/", "/config", "/assets/a.js", "/static/a.js", "/theme.css"])
def test_the_gate_lets_the_pages_files_through(gated, path):
    answer = gated.get(path, headers={"Origin": "https://foreign.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert "foreign" not in answer.text
    assert gated.post(path).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/queue/join",
        "/gradio_api/proxy=https://foreign.example", "/monitoring", "/gradio_api/info", "/login",
        "/gradio_api/component_server", "/gradio_api/heartbeat/a", "/anything",
    ],
)  # fmt: skip
def test_the_gate_lets_nothing_else_through(gated, path):
    assert gated.get(path).status_code == 404
    assert gated.post(path, json={}).status_code == 404
    assert not gated.seen


RUN = "/gradio_api/run/search"
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
"""What gradio takes for a file, and reads."""


def test_calls_reach_the_page_without_a_session(gated):
    call = {"data": ["a", None, 1.5, ["b"]], "fn_index": 2, "session_hash": "s", "event_data": 1}
    assert gated.post(RUN, json=call).status_code == 200
    assert gated.seen == [
        {"data": call["data"], "fn_index": 2, "trigger_id": None, "session_hash": None}
    ]


@pytest.mark.parametrize(
    "call",
    [
        {"data": [FILE, "", "", ""], "fn_index": 2},
        {"data": [["a", FILE], "", "", ""], "fn_index": 2},
        {"data": FILE, "fn_index": 2},
        {"data": ["a"] * 4},
        {"data": ["a"] * 3, "fn_index": 2},
        {"data": [], "fn_index": 4},
        {"data": ["a"] * 33, "fn_index": 2},
        [],
    ],
)
def test_calls_with_more_than_plain_values_are_refused(gated, call):
    answer = gated.post(RUN, json=call)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert gated.post(RUN, content=b"{").status_code == 422
    assert not gated.seen


def test_without_gradio_the_page_says_what_to_install(run, embedded, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with serving(run, embedded, monkeypatch, page=True) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "pip install" in page.text
        assert client.post("/search", json={"text": "badge"}).status_code == 200


class Page:
    """The page as its own script speaks to it."""

    def __init__(self, client):
        self.client = client
        self.functions = client.get("/config").json()["dependencies"]

    def call(self, name, values):
        """The first output of a function."""
        (number,) = {x["id"] for x in self.functions if x["api_name"] == name}
        call = {"data": values, "fn_index": number, "session_hash": "s"}
        answer = self.client.post(f"/gradio_api/run/{name}", json=call)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]

    def ask(self, name="search", **given):
        form = {
            "text": "", "photo": "", "pairs": [], "low": "", "high": "", "where": "", "k": 5,
            "wish": "auto",
        }  # fmt: skip
        return self.call(name, list((form | given).values()))


@pytest.fixture(scope="module")
def page(run, embedded):
    pytest.importorskip("gradio", reason="the extra serve is not installed")
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(run, embedded, patch, page=True) as client,
    ):
        yield Page(client)


def test_it_searches_by_words_and_photo(page):
    photo = base64.b64encode(picture(3)).decode()
    html = page.ask(text="red badge", photo=f"data:image/png;base64,{photo}", wish="on")
    assert html.count('<li class="hit">') == 5
    assert "5 of 30 listings" in html
    assert 'src="thumbnails?listing_id=' in html


def test_it_filters_by_price_and_conditions(page):
    html = page.ask(text="badge", low="3", high=" 8.0", where="price!=5\n\nlisting_id~-")
    prices = {int(x) for x in re.findall(r'class="price">(\d+)<', html)}
    assert prices
    assert prices <= {3, 4, 6, 7, 8}
    assert "No listing fits" in page.ask(text="badge", low="1000")
    assert page.ask(text="badge", pairs=["title~badge"]).count('<li class="hit">') == 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "Type some words"),
        ({"photo": "data:image/png;base64,AAAA"}, "Please change the query"),
        ({"photo": "https://foreign.example/a.jpg"}, "not fetched"),
        ({"text": "a", "where": "nonsense"}, "cannot be read"),
        ({"text": "a", "where": "weight<5"}, "no listing has"),
        ({"text": "a", "low": "cheap"}, "no number"),
        ({"text": "a", "where": "<script>=1"}, "&lt;script&gt;"),
        ({"text": "a" * 10_001}, "longer than"),
        ({"text": "a", "wish": "perhaps"}, "load the page again"),
        ({"text": 7}, "load the page again"),
        ({"text": "a", "k": "many"}, "load the page again"),
        ({"text": "a", "k": 1e300}, "load the page again"),
    ],
)
def test_what_is_wrong_is_said_on_the_page(page, given, said):
    html = page.ask(**given)
    assert 'class="problem"' in html
    assert said.casefold() in html.casefold()
    assert "Traceback" not in html


def test_without_another_system_nothing_is_compared(page):
    assert "compare" not in {x["api_name"] for x in page.functions}


def test_the_page_names_no_foreign_host(page):
    text = page.client.get("/").text
    assert set(re.findall(r"https?://[^\s\"'<>\\]+", text)) <= {"http://127.0.0.1:8080"}


def test_foreign_pages_cannot_call_it(page):
    call = {"data": [], "fn_index": 0}
    foreign = {"Origin": "https://foreign.example"}
    answer = page.client.post("/gradio_api/run/search", json=call, headers=foreign)
    assert answer.status_code == 403
